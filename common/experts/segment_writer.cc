#include "common/experts/segment_writer.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/checked.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/experts/crc32c.h"
#include "common/experts/huge_tmpfs.h"
#include "common/experts/layout.h"
#include "common/experts/memory_room.h"
#include "common/experts/packing.h"
#include "common/experts/reservation.h"

namespace hearth {
namespace {

struct Extent {
  SegmentInfo info;
  std::vector<uint64_t> offsets;  // one an expert; 0: none
};

// A segment is whole pages of `page_bytes`, where those are more than experts are aligned to.
absl::StatusOr<Extent> LayOut(const SegmentPlan& plan, uint64_t page_bytes) {
  Extent extent;
  extent.info = {.layout_version = kLayoutVersion,
                 .n_layers = plan.n_layers,
                 .n_experts = plan.n_experts,
                 .expert_layout = plan.expert_layout,
                 .table_offset = sizeof(SegmentHeader),
                 .fingerprint = plan.fingerprint};
  if (plan.n_layers < 1 || plan.n_layers > static_cast<int>(kMaxLayers) || plan.n_experts < 0 ||
      plan.n_experts > static_cast<int>(kMaxExperts)) {
    return absl::InvalidArgumentError(absl::StrCat(plan.n_layers, " layers of ", plan.n_experts,
                                                   " experts: at most ", kMaxLayers, " and ",
                                                   kMaxExperts, " are supported"));
  }
  if (!IsFingerprint(plan.fingerprint)) {
    return absl::InvalidArgumentError("fingerprint is not 1 to 64 hex digits");
  }
  HEARTH_CHECK(plan.payload_bytes.size() == extent.info.n_entries());
  uint64_t end = sizeof(SegmentHeader) + extent.info.n_entries() * sizeof(ExpertEntry);
  extent.info.payload_offset = *CheckedAlignUp(end, kExpertAlignment);
  end = extent.info.payload_offset;
  extent.offsets.reserve(plan.payload_bytes.size());
  for (const uint64_t bytes : plan.payload_bytes) {
    const auto next = CheckedAdd(end, bytes);
    const auto aligned = next ? CheckedAlignUp(*next, kExpertAlignment) : next;
    if (!aligned) return absl::InvalidArgumentError("the experts exceed 64-bit sizes");
    extent.offsets.push_back(bytes == 0 ? 0 : end);
    end = *aligned;
  }
  const auto whole = CheckedAlignUp(end, page_bytes > kSmallPageBytes ? page_bytes : 1);
  if (!whole) return absl::InvalidArgumentError("the experts exceed 64-bit sizes");
  extent.info.total_bytes = *whole;
  return extent;
}

void WriteHeader(const SegmentInfo& info, std::byte* segment) {
  auto* header = new (segment) SegmentHeader{};
  std::copy(std::begin(kSegmentMagic), std::end(kSegmentMagic), header->magic);
  header->layout_version = info.layout_version;
  header->header_bytes = sizeof(SegmentHeader);
  header->n_layers = static_cast<uint32_t>(info.n_layers);
  header->n_experts = static_cast<uint32_t>(info.n_experts);
  header->total_bytes = info.total_bytes;
  header->table_offset = info.table_offset;
  header->payload_offset = info.payload_offset;
  header->expert_layout = info.expert_layout;
  info.fingerprint.copy(header->fingerprint, sizeof header->fingerprint);
  header->header_crc = HeaderCrc(*header);
  header->state.store(kSegmentLoading, std::memory_order_release);
}

void WriteTable(const SegmentPlan& plan, const Extent& extent, std::byte* segment) {
  for (size_t i = 0; i < extent.offsets.size(); ++i) {
    auto* entry = new (segment + extent.info.table_offset + i * sizeof(ExpertEntry)) ExpertEntry{};
    entry->payload_offset = extent.offsets[i];
    entry->payload_bytes = plan.payload_bytes[i];
    entry->entry_crc.store(EntryCrc(i, *entry), std::memory_order_release);
  }
}

absl::StatusOr<UniqueFd> MakeNamelessFile() {
  if (const auto tmpfs = OpenHugeTmpfs(); tmpfs.ok()) {
    UniqueFd fd(::open(FdFolder(tmpfs->get()).c_str(), O_RDWR | O_TMPFILE | O_CLOEXEC, 0600));
    if (fd.valid()) return fd;
  }
  UniqueFd fd(::memfd_create("hearth-experts", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return ErrnoStatus(errno, "create memory for the experts (memfd)");
  return fd;
}

}  // namespace

absl::Status RemoveSegmentFile(const std::filesystem::path& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) {
    return errno == ENOENT ? absl::OkStatus()
                           : ErrnoStatus(errno, absl::StrCat("look at ", path.string()));
  }
  if (S_ISDIR(info.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path.string(), ": a folder; choose another --segment"));
  }
  if (info.st_uid != ::geteuid()) {
    return absl::PermissionDeniedError(
        absl::StrCat(path.string(), ": belongs to user ", info.st_uid, ", not to this user (",
                     ::geteuid(), "); remove it or choose another --segment"));
  }
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    return ErrnoStatus(errno, absl::StrCat("remove ", path.string()));
  }
  return absl::OkStatus();
}

SegmentWriter::~SegmentWriter() = default;

absl::StatusOr<std::unique_ptr<SegmentWriter>> SegmentWriter::Reserve(SegmentFile file,
                                                                      const SegmentPlan& plan,
                                                                      std::stop_token stop) {
  HEARTH_ASSIGN_OR_RETURN(const Extent extent, LayOut(plan, file.page_bytes));
  file.bytes = extent.info.total_bytes;
  auto writer = std::unique_ptr<SegmentWriter>(new SegmentWriter());
  HEARTH_ASSIGN_OR_RETURN(writer->mapping_, ReserveAndMap(file, stop));
  writer->info_ = extent.info;
  writer->file_ = std::move(file);
  WriteTable(plan, extent, writer->mapping_.writable_bytes().data());
  WriteHeader(extent.info, writer->mapping_.writable_bytes().data());
  return writer;
}

absl::StatusOr<std::unique_ptr<SegmentWriter>> SegmentWriter::Create(
    const std::filesystem::path& path, const SegmentPlan& plan, std::stop_token stop) {
  // One fixed name, so that what a killed process left behind is found and freed.
  const std::filesystem::path unfinished = path.string() + ".new";
  HEARTH_RETURN_IF_ERROR(RemoveSegmentFile(unfinished));
  HEARTH_RETURN_IF_ERROR(RemoveSegmentFile(path));
  std::filesystem::path folder = path.parent_path();
  if (folder.empty()) folder = ".";
  HEARTH_ASSIGN_OR_RETURN(const Extent extent, LayOut(plan, PageBytesOf(folder)));
  HEARTH_RETURN_IF_ERROR(CheckRoom(extent.info.total_bytes, folder));
  UniqueFd fd(::open(unfinished.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("create segment ", path.string()));
  HEARTH_ASSIGN_OR_RETURN(SegmentFile file, CheckSegmentFd(std::move(fd), unfinished.string()));
  auto writer = Reserve(std::move(file), plan, std::move(stop));
  // From here on the name shows a whole header: readers and adopters go by the state words.
  if (writer.ok() && ::rename(unfinished.c_str(), path.c_str()) != 0) {
    writer = ErrnoStatus(errno, absl::StrCat("rename to ", path.string()));
  }
  if (!writer.ok()) {
    ::unlink(unfinished.c_str());
    return Annotate(writer.status(), path.string());
  }
  (*writer)->path_ = path;
  return writer;
}

absl::StatusOr<std::unique_ptr<SegmentWriter>> SegmentWriter::CreateInMemory(
    const SegmentPlan& plan, std::stop_token stop) {
  HEARTH_ASSIGN_OR_RETURN(const Extent extent, LayOut(plan, 1));
  HEARTH_RETURN_IF_ERROR(CheckRoom(extent.info.total_bytes, {}));
  HEARTH_ASSIGN_OR_RETURN(UniqueFd fd, MakeNamelessFile());
  HEARTH_ASSIGN_OR_RETURN(SegmentFile file, CheckSegmentFd(std::move(fd), "nameless file"));
  HEARTH_ASSIGN_OR_RETURN(auto writer, Reserve(std::move(file), plan, std::move(stop)));
  // Refused by a tmpfs, whose nameless file nobody else can open.
  ::fcntl(writer->file_.fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
  return writer;
}

absl::StatusOr<std::unique_ptr<SegmentWriter>> SegmentWriter::OpenExisting(
    const std::filesystem::path& path) {
  HEARTH_ASSIGN_OR_RETURN(SegmentFile file, OpenSegmentFile(path, FileAccess::kReadWrite));
  auto writer = std::unique_ptr<SegmentWriter>(new SegmentWriter());
  // Touching a hole would take memory that may not be there.
  if (file.is_sparse) return absl::DataLossError(absl::StrCat(path.string(), ": has holes"));
  HEARTH_ASSIGN_OR_RETURN(writer->mapping_, SharedMapping::Map(file, FileAccess::kReadWrite));
  const auto bytes = writer->mapping_.bytes();
  auto info = CheckHeader(bytes);
  if (!info.ok()) return Annotate(info.status(), path.string());
  writer->info_ = *std::move(info);
  HEARTH_RETURN_IF_ERROR(Annotate(CheckTable(bytes, writer->info_), path.string()));
  writer->file_ = std::move(file);
  writer->path_ = path;
  return writer;
}

bool SegmentWriter::is_ready() const {
  return HeaderOf(mapping_.bytes()).state.load(std::memory_order_acquire) == kSegmentReady;
}

ExpertEntry& SegmentWriter::Entry(int layer, int expert) const {
  HEARTH_CHECK(layer >= 0 && layer < info_.n_layers && expert >= 0 && expert < info_.n_experts);
  return const_cast<ExpertEntry&>(TableOf(mapping_.bytes(), info_)[info_.Index(layer, expert)]);
}

std::span<std::byte> SegmentWriter::Payload(const ExpertEntry& entry) const {
  const auto payload = PayloadOf(mapping_.bytes(), entry);
  return {const_cast<std::byte*>(payload.data()), payload.size()};
}

ExpertState SegmentWriter::state(int layer, int expert) const {
  return static_cast<ExpertState>(Entry(layer, expert).state.load(std::memory_order_acquire));
}

uint64_t SegmentWriter::payload_bytes(int layer, int expert) const {
  return Entry(layer, expert).payload_bytes;
}

SegmentWriter::Counts SegmentWriter::CountStates() const {
  Counts counts;
  for (const ExpertEntry& entry : TableOf(mapping_.bytes(), info_)) {
    if (entry.payload_bytes == 0) continue;
    ++counts.total;
    switch (entry.state.load(std::memory_order_acquire)) {
      case kExpertReady:
        ++counts.ready;
        break;
      case kExpertLoading:
        ++counts.loading;
        break;
      case kExpertDamaged:
        ++counts.damaged;
        break;
      default:
        ++counts.absent;
    }
  }
  return counts;
}

absl::Status SegmentWriter::Write(int layer, int expert, const ExpertRef& weights) {
  ExpertEntry& entry = Entry(layer, expert);
  const auto payload = Payload(entry);
  entry.state.store(kExpertLoading, std::memory_order_release);
  // One call instead of a page fault for each 4 KiB; a kernel that can't do it faults them in.
  ::madvise(payload.data(), (payload.size() + kExpertAlignment - 1) & ~(kExpertAlignment - 1),
            MADV_POPULATE_WRITE);
  HEARTH_RETURN_IF_ERROR(PackExpert(weights, info_.expert_layout, payload));
  const uint32_t crc = Crc32c(payload);
  const uint32_t before = entry.payload_crc.load(std::memory_order_relaxed);
  if (before != 0 && before != crc) {
    entry.state.store(kExpertDamaged, std::memory_order_release);
    return absl::DataLossError(absl::StrCat(
        "layer ", layer, " expert ", expert,
        ": the checkpoint no longer gives the bytes that were loaded first; was it changed?"));
  }
  entry.payload_crc.store(crc, std::memory_order_relaxed);
  entry.entry_crc.store(EntryCrc(info_.Index(layer, expert), entry), std::memory_order_relaxed);
  entry.state.store(kExpertReady, std::memory_order_release);  // publishes all of the above
  return absl::OkStatus();
}

absl::Status SegmentWriter::Verify(int layer, int expert) const {
  const ExpertEntry& entry = Entry(layer, expert);
  if (Crc32c(Payload(entry)) != entry.payload_crc.load(std::memory_order_relaxed)) {
    return absl::DataLossError(
        absl::StrCat("layer ", layer, " expert ", expert, ": checksum differs"));
  }
  return UnpackExpert(Payload(entry)).status();
}

void SegmentWriter::Quarantine(int layer, int expert) {
  Entry(layer, expert).state.store(kExpertDamaged, std::memory_order_release);
}

absl::StatusOr<ExpertRef> SegmentWriter::Expert(int layer, int expert) const {
  const ExpertEntry& entry = Entry(layer, expert);
  if (entry.payload_bytes == 0) return absl::NotFoundError("no expert there");
  return UnpackExpert(Payload(entry));
}

absl::Status SegmentWriter::MarkReady() {
  const Counts counts = CountStates();
  if (counts.ready != counts.total) {
    return absl::FailedPreconditionError(
        absl::StrCat(counts.total - counts.ready, " experts are not loaded"));
  }
  auto& header = const_cast<SegmentHeader&>(HeaderOf(mapping_.bytes()));
  header.state.store(kSegmentReady, std::memory_order_release);
  return absl::OkStatus();
}

void SegmentWriter::MarkLoading() {
  auto& header = const_cast<SegmentHeader&>(HeaderOf(mapping_.bytes()));
  header.state.store(kSegmentLoading, std::memory_order_release);
}

absl::StatusOr<std::unique_ptr<SegmentReader>> SegmentWriter::OpenReader() const {
  UniqueFd fd(::fcntl(file_.fd.get(), F_DUPFD_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "duplicate the segment's descriptor");
  return SegmentReader::FromFd(std::move(fd), info_.fingerprint);
}

void SegmentWriter::Remove() {
  struct stat info {};
  if (path_.empty() || ::lstat(path_.c_str(), &info) != 0) return;
  if (absl::StrCat(info.st_dev, ":", info.st_ino) == file_.identity) ::unlink(path_.c_str());
}

}  // namespace hearth
