#include "services/gpu-worker/engine/cuda/device_weights.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/experts/layout.h"
#include "common/experts/packing.h"
#include "services/gpu-worker/engine/tiled_weights.h"
#include "services/gpu-worker/ops/cuda/cuda_status.h"

namespace hearth::worker {
namespace {

constexpr int64_t kVectorAlignment = 4;  // floats

// The model's layers, and behind them the multi-token prediction head's.
std::vector<LayerWeights*> Layers(ModelWeights& weights) {
  std::vector<LayerWeights*> all;
  for (LayerWeights& layer : weights.layers) all.push_back(&layer);
  if (weights.mtp.has_value()) all.push_back(&weights.mtp->layer);
  return all;
}

std::vector<FloatArray*> Vectors(ModelWeights& weights) {
  std::vector<FloatArray*> all = {&weights.norm};
  for (LayerWeights* layer : Layers(weights)) {
    DeltaNetWeights& d = layer->delta_net;
    all.insert(all.end(),
               {&layer->input_norm, &layer->post_attention_norm, &layer->attention.q_norm,
                &layer->attention.k_norm, &d.conv, &d.a_log, &d.dt_bias, &d.norm});
  }
  if (auto& mtp = weights.mtp; mtp.has_value()) {
    all.insert(all.end(), {&mtp->embedding_norm, &mtp->hidden_norm, &mtp->norm});
  }
  std::erase_if(all, [](const FloatArray* array) { return array->size() == 0; });
  return all;
}

int64_t Padded(size_t n) {
  return (static_cast<int64_t>(n) + kVectorAlignment - 1) / kVectorAlignment * kVectorAlignment;
}

int64_t VectorFloats(ModelWeights& weights) {
  int64_t n = 0;
  for (const FloatArray* array : Vectors(weights)) n += Padded(array->size());
  return n;
}

DenseReader ReaderOf(bool exact) { return exact ? DenseReader::kCudaExact : DenseReader::kCuda; }

absl::Status PinEmbedding(ModelWeights& weights, int n_threads, DeviceWeights* to) {
  LinearRef& table = weights.embedding.ref;
  const bool is_bf16 = table.kind == WeightKind::kBF16;
  const auto values = static_cast<uint64_t>(table.out * table.in);
  HEARTH_RETURN_IF_ERROR(to->embedding.Allocate(values * (is_bf16 ? 2 : 4)));
  to->embedding_bits = is_bf16 ? 16 : 32;
  ThreadPool pool(n_threads);
  constexpr int64_t kRows = 512;
  const auto n_parts = static_cast<int>((table.out + kRows - 1) / kRows);
  pool.ParallelFor(n_parts, [&](int part) {
    const int64_t end = std::min(table.out, (part + 1) * kRows);
    for (int64_t row = part * kRows; row < end; ++row) {
      if (is_bf16) {
        std::memcpy(to->embedding.as<uint16_t>() + row * table.in,
                    static_cast<const uint16_t*>(table.data) + row * table.in,
                    static_cast<size_t>(table.in) * 2);
      } else {
        DequantizeRow(
            table, row,
            std::span(to->embedding.as<float>() + row * table.in, static_cast<size_t>(table.in)));
      }
    }
  });
  return absl::OkStatus();
}

// Each layer's shared expert as a slot; empty if one is not like the routed experts.
std::vector<std::byte> PackSharedExperts(ModelWeights& weights, const SlotLayout& layout) {
  std::vector<std::byte> slots;
  if (!layout.can_cache) return slots;
  const std::vector<LayerWeights*> layers = Layers(weights);
  slots.resize(layers.size() * layout.stride);
  for (size_t i = 0; i < layers.size(); ++i) {
    const ExpertRef expert = layers[i]->experts.shared_expert.ref();
    if (expert.gate.data == nullptr) continue;  // a layer without experts
    const auto bytes = PackedExpertBytes(expert, kTiledExperts);
    if (!bytes.ok() || *bytes != layout.bytes) return {};
    const std::span<std::byte> slot(slots.data() + i * layout.stride, layout.bytes);
    if (!PackExpert(expert, kTiledExperts, slot).ok() || !FitsSlot(layout, slot)) return {};
  }
  return slots;
}

// Linears lie in one piece of host memory: the same bytes on the device.
void Rebase(ModelWeights& weights, const std::byte* from, uint64_t bytes, const std::byte* to) {
  const auto move = [&](OwnedLinear& linear) {
    const auto at = [&](const void* p) { return to + (static_cast<const std::byte*>(p) - from); };
    const auto* data = static_cast<const std::byte*>(linear.ref.data);
    if (data == nullptr || data < from || data >= from + bytes) return;
    linear.ref.data = at(data);
    if (linear.ref.scales != nullptr) {
      linear.ref.scales = reinterpret_cast<const uint16_t*>(at(linear.ref.scales));
    }
  };
  for (OwnedLinear* linear : DenseLinears(weights)) move(*linear);
}

}  // namespace

absl::Status PinnedBuffer::Allocate(uint64_t bytes) {
  cudaFreeHost(data_);
  data_ = nullptr;
  HEARTH_RETURN_IF_ERROR(CudaStatus(cudaHostAlloc(&data_, std::max<uint64_t>(bytes, 1),
                                                  cudaHostAllocPortable | cudaHostAllocMapped),
                                    absl::StrCat("pinning ", bytes >> 20, " MiB of RAM")));
  std::memset(data_, 0, bytes);
  return absl::OkStatus();
}

uint64_t DeviceWeightBytes(const ModelWeights& weights, const SlotLayout& layout, bool exact) {
  auto& all = const_cast<ModelWeights&>(weights);  // nothing is changed
  return (layout.can_cache ? Layers(all).size() * layout.stride : 0) +
         TiledBytes(all, ReaderOf(exact)) +
         static_cast<uint64_t>(VectorFloats(all)) * sizeof(float);
}

absl::StatusOr<DeviceWeights> UploadWeights(ModelWeights& weights, const SlotLayout& layout,
                                            bool exact, int n_threads) {
  DeviceWeights device;
  const std::vector<std::byte> shared = PackSharedExperts(weights, layout);
  const auto shared_bytes = static_cast<int64_t>(shared.size());
  device.slot_stride = layout.stride;
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(device.shared_slots.Allocate(shared_bytes), "memory for shared experts"));
  HEARTH_RETURN_IF_ERROR(CudaStatus(
      device.shared_slots.CopyFrom(reinterpret_cast<const uint8_t*>(shared.data()), shared_bytes),
      "copying shared experts"));
  HEARTH_RETURN_IF_ERROR(PinEmbedding(weights, n_threads, &device));
  HEARTH_ASSIGN_OR_RETURN(const PageBuffer tiles, TileWeights(weights, n_threads, ReaderOf(exact)));
  const auto bytes = static_cast<int64_t>(tiles.bytes());
  HEARTH_RETURN_IF_ERROR(CudaStatus(device.linears.Allocate(bytes), "memory for dense weights"));
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(device.linears.CopyFrom(tiles.data(), bytes), "copying dense weights"));
  Rebase(weights, tiles.data(), tiles.bytes(), device.linears.data());

  std::vector<float> values(static_cast<size_t>(VectorFloats(weights)));
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(device.vectors.Allocate(static_cast<int64_t>(values.size())), "memory for norms"));
  int64_t at = 0;
  for (FloatArray* array : Vectors(weights)) {
    std::copy_n(array->data(), array->size(), values.begin() + at);
    array->MoveTo(device.vectors.data() + at);
    at += Padded(array->size());
  }
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(device.vectors.CopyFrom(values.data(), static_cast<int64_t>(values.size())),
                 "copying norms"));
  return device;
}

}  // namespace hearth::worker
