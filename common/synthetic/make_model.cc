#include "common/synthetic/make_model.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/file.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/base/unique_fd.h"
#include "common/synthetic/byte_tokenizer.h"
#include "common/synthetic/tensors.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kPieceBytes = 4 << 20;  // written at once by a thread

// A run of tensors that one file holds.
struct Shard {
  std::span<const SyntheticTensor> tensors;
  std::string name;
};

std::vector<Shard> Split(std::span<const SyntheticTensor> tensors, uint64_t max_bytes) {
  std::vector<Shard> shards;
  uint64_t bytes = 0;
  size_t begin = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (bytes > 0 && bytes + tensors[i].n_bytes() > max_bytes) {
      shards.push_back({tensors.subspan(begin, i - begin), {}});
      begin = i;
      bytes = 0;
    }
    bytes += tensors[i].n_bytes();
  }
  shards.push_back({tensors.subspan(begin), {}});
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].name = absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
  }
  return shards;
}

// Length and text of a file's header. Names and numbers need no escaping. Padded, so that data
// begin at a multiple of 8.
std::string HeaderBytes(std::span<const SyntheticTensor> tensors) {
  std::string text = R"({"__metadata__":{"format":"pt"})";
  uint64_t offset = 0;
  for (const SyntheticTensor& tensor : tensors) {
    const uint64_t end = offset + tensor.n_bytes();
    absl::StrAppend(&text, ",\"", tensor.name, "\":{\"dtype\":\"", ToAbsl(DtypeName(tensor.dtype)),
                    "\",\"shape\":", ShapeText(tensor.shape), ",\"data_offsets\":[", offset, ",",
                    end, "]}");
    offset = end;
  }
  text += '}';
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string bytes(8, '\0');
  const uint64_t size = text.size();
  std::memcpy(bytes.data(), &size, sizeof(size));
  return bytes + text;
}

std::string IndexJson(const std::vector<Shard>& shards, uint64_t total_bytes) {
  std::string text =
      absl::StrCat("{\"metadata\":{\"total_size\":", total_bytes, "},\"weight_map\":{");
  const char* separator = "";
  for (const Shard& shard : shards) {
    for (const SyntheticTensor& tensor : shard.tensors) {
      absl::StrAppend(&text, separator, "\"", tensor.name, "\":\"", shard.name, "\"");
      separator = ",";
    }
  }
  return text + "}}";
}

absl::Status WriteAt(int fd, uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "write");
    bytes = bytes.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

// Consecutive tensors, or a part of a large one, that a thread makes and writes at once.
struct Piece {
  size_t first = 0, last = 0;  // tensors [first, last)
  uint64_t offset = 0;         // in the first tensor; others are whole
  uint64_t bytes = 0;
  uint64_t file_offset = 0;
};

std::vector<Piece> Cut(std::span<const SyntheticTensor> tensors, uint64_t file_offset) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const uint64_t n = tensors[i].n_bytes();
    if (n <= kPieceBytes && !pieces.empty() && pieces.back().offset == 0 &&
        pieces.back().bytes + n <= kPieceBytes) {
      pieces.back().last = i + 1;
      pieces.back().bytes += n;
    } else {
      for (uint64_t offset = 0; offset < n; offset += kPieceBytes) {
        pieces.push_back(
            {i, i + 1, offset, std::min(kPieceBytes, n - offset), file_offset + offset});
      }
    }
    file_offset += n;
  }
  return pieces;
}

class Writer {
 public:
  Writer(const SyntheticSpec& spec, const MakeModelOptions& options, uint64_t total_bytes,
         const std::function<void(const MakeModelProgress&)>& progress)
      : seed_(spec.seed), options_(options), pool_(options.n_threads), callback_(progress) {
    progress_.bytes_total = total_bytes;
  }

  absl::Status WriteShard(const Shard& shard) {
    const fs::path path = options_.folder / shard.name;
    const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("create ", path.string()));
    const std::string header = HeaderBytes(shard.tensors);
    absl::Status status = WriteAt(fd.get(), 0, std::as_bytes(std::span(header)));
    const std::vector<Piece> pieces = Cut(shard.tensors, header.size());
    pool_.ParallelFor(static_cast<int>(pieces.size()), [&](int i) {
      WritePiece(shard, fd.get(), pieces[static_cast<size_t>(i)], &status);
    });
    return Annotate(status, path.string());
  }

 private:
  void WritePiece(const Shard& shard, int fd, const Piece& piece, absl::Status* status) {
    {
      const std::lock_guard lock(mutex_);
      if (!status->ok()) return;
    }
    std::vector<std::byte> bytes(piece.bytes);
    uint64_t done = 0;
    for (size_t i = piece.first; i < piece.last; ++i) {
      const SyntheticTensor& tensor = shard.tensors[i];
      const uint64_t size = std::min(tensor.n_bytes() - piece.offset, piece.bytes - done);
      FillTensor(tensor, seed_, piece.offset, std::span(bytes).subspan(done, size));
      done += size;
    }
    const absl::Status written = WriteAt(fd, piece.file_offset, bytes);
    const std::lock_guard lock(mutex_);
    status->Update(written);
    progress_.bytes_done += piece.bytes;
    if (callback_) callback_(progress_);
  }

  const uint64_t seed_;
  const MakeModelOptions& options_;
  ThreadPool pool_;
  const std::function<void(const MakeModelProgress&)>& callback_;
  std::mutex mutex_;  // guards progress_ and a shard's status
  MakeModelProgress progress_;
};

absl::Status MakeEmptyFolder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return ErrnoStatus(error.value(), absl::StrCat("make the folder ", folder.string()));
  if (!fs::is_empty(folder, error) || error) {
    return absl::AlreadyExistsError(
        absl::StrCat(folder.string(), ": holds something already; choose another --out"));
  }
  return absl::OkStatus();
}

absl::Status WriteSmallFiles(const SyntheticSpec& spec, const ModelConfig& config,
                             const fs::path& folder) {
  const std::pair<const char*, json::object> files[] = {
      {"config.json", SyntheticConfig(spec)},
      {"generation_config.json", SyntheticGenerationConfig()},
      {"tokenizer.json", ByteTokenizerJson(config.vocab_size)},
      {"tokenizer_config.json", ByteTokenizerConfig()}};
  for (const auto& [name, object] : files) {
    HEARTH_RETURN_IF_ERROR(WriteFileAtomically(folder / name, SerializeJson(object) + "\n"));
  }
  return absl::OkStatus();
}

absl::Status WriteAll(const SyntheticSpec& spec, const ModelConfig& config,
                      const MakeModelOptions& options,
                      const std::function<void(const MakeModelProgress&)>& progress) {
  const std::vector<SyntheticTensor> tensors = ListSyntheticTensors(config, spec.mtp);
  uint64_t total = 0;
  for (const SyntheticTensor& tensor : tensors) total += tensor.n_bytes();
  if (const auto room = FileSystemRoom(options.folder)) {
    HEARTH_RETURN_IF_ERROR(CheckDiskRoom(total, *room));
  }
  const std::vector<Shard> shards = Split(tensors, options.max_shard_bytes);
  Writer writer(spec, options, total, progress);
  for (const Shard& shard : shards) HEARTH_RETURN_IF_ERROR(writer.WriteShard(shard));
  HEARTH_RETURN_IF_ERROR(WriteSmallFiles(spec, config, options.folder));
  return WriteFileAtomically(options.folder / "model.safetensors.index.json",
                             IndexJson(shards, total));
}

}  // namespace

absl::Status CheckDiskRoom(uint64_t need, const MemoryRoom& room) {
  // Headers, index and what a file system keeps for itself.
  const uint64_t with_margin = need + need / 100 + (16 << 20);
  if (with_margin <= room.bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the model takes ", with_margin >> 20, " MiB, but ", room.limited_by, " is ",
                   room.bytes >> 20, " MiB; choose fewer --layers or another --out"));
}

absl::Status MakeModel(const SyntheticSpec& spec, const MakeModelOptions& options,
                       const std::function<void(const MakeModelProgress&)>& progress) {
  HEARTH_ASSIGN_OR_RETURN(const ModelConfig config,
                          ParseModelConfig(SerializeJson(SyntheticConfig(spec)),
                                           SerializeJson(SyntheticGenerationConfig())));
  HEARTH_RETURN_IF_ERROR(MakeEmptyFolder(options.folder));
  absl::Status status = WriteAll(spec, config, options, progress);
  if (!status.ok()) {  // the folder was empty: all in it is ours
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(options.folder, ignored)) {
      fs::remove(entry.path(), ignored);
    }
  }
  return status;
}

}  // namespace hearth
