#include "common/checkpoint/fingerprint.h"

#include <openssl/evp.h>

#include <algorithm>
#include <memory>
#include <span>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"

namespace hearth {
namespace {

constexpr uint64_t kSamples = 16;
constexpr uint64_t kSampleBytes = 64 << 10;

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    HEARTH_CHECK(context_ != nullptr &&
                 EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
  }
  void Add(const void* data, size_t size) {
    HEARTH_CHECK(EVP_DigestUpdate(context_.get(), data, size) == 1);
  }
  void Add(std::span<const std::byte> bytes) { Add(bytes.data(), bytes.size()); }
  void Add(uint64_t number) { Add(&number, sizeof(number)); }
  std::string FinishHex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    HEARTH_CHECK(EVP_DigestFinal_ex(context_.get(), digest, &size) == 1);
    return absl::BytesToHexString({reinterpret_cast<const char*>(digest), size});
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

void AddSamples(std::span<const std::byte> data, Sha256& hash) {
  if (data.size() <= kSamples * kSampleBytes) return hash.Add(data);
  const uint64_t last = data.size() - kSampleBytes;
  for (uint64_t i = 0; i < kSamples; ++i) {  // the first at the beginning, the last at the end
    hash.Add(data.subspan(
        last / (kSamples - 1) * i + (i == kSamples - 1 ? last % (kSamples - 1) : 0), kSampleBytes));
  }
}

}  // namespace

std::string ComputeExpertFingerprint(const ModelConfig& config, const TensorFolder& folder) {
  Sha256 hash;
  const std::string_view rule = "hearth experts 1";
  hash.Add(rule.data(), rule.size());
  for (const int field :
       {config.hidden_size, config.n_layers, config.n_experts, config.expert_intermediate_size}) {
    hash.Add(static_cast<uint64_t>(field));
  }
  for (const LayerConfig& layer : config.layers) hash.Add(uint64_t{layer.has_experts});
  for (const auto& shard : folder.shards()) {
    hash.Add(shard->file_bytes().size());
    hash.Add(shard->header_bytes().size());
    hash.Add(shard->header_bytes());
    AddSamples(shard->data_bytes(), hash);
  }
  return hash.FinishHex();
}

}  // namespace hearth
