// A weights file from a stranger: parsed, every byte that a tensor claims touched, and each
// quantization state read.
#include <cstdint>
#include <span>
#include <string_view>

#include "common/checkpoint/quant_state.h"
#include "common/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = hearth::SafetensorsFile::Parse(std::as_bytes(std::span(data, size)), "fuzz");
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (!file.ok()) {
    (void)hearth::ParseQuantState(text);  // short texts reach the second parser directly
    return 0;
  }
  uint64_t sum = 0;
  for (const hearth::TensorView& tensor : file->tensors()) {
    for (const std::byte byte : tensor.bytes) sum += static_cast<uint64_t>(byte);
    if (file->Find(tensor.name) != &tensor) __builtin_trap();
    (void)hearth::ToFloats(tensor);
    (void)hearth::ToIntegers(tensor);
    if (tensor.dtype == hearth::Dtype::kU8) {
      (void)hearth::ParseQuantState(
          {reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size()});
    }
  }
  volatile uint64_t sink = sum;
  (void)sink;
  return 0;
}
