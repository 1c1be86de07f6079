#include "common/checkpoint/safetensors_bytes.h"

#include <cstring>

#include "common/base/json.h"

namespace hearth {

std::string SafetensorsBytes(std::span<const RawTensor> tensors,
                             const std::map<std::string, std::string>& metadata) {
  json::object header;
  if (!metadata.empty()) {
    json::object texts;
    for (const auto& [key, value] : metadata) texts[key] = value;
    header["__metadata__"] = texts;
  }
  std::string data;
  for (const RawTensor& tensor : tensors) {
    const std::string_view dtype = DtypeName(tensor.dtype);
    header[tensor.name] = {
        {"dtype", json::string_view(dtype.data(), dtype.size())},
        {"shape", json::array(tensor.shape.begin(), tensor.shape.end())},
        {"data_offsets", json::array{data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  std::string text = SerializeJson(header);
  text.append((8 - text.size() % 8) % 8, ' ');
  return SafetensorsBytes(text, data);
}

std::string SafetensorsBytes(const std::string& header, const std::string& data) {
  const uint64_t size = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &size, 8);
  return file + header + data;
}

}  // namespace hearth
