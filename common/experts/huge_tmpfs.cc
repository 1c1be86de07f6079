#include "common/experts/huge_tmpfs.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace hearth {
namespace {

// What went wrong in a step, small enough to cross a socket.
struct Refusal {
  const char* step = nullptr;  // a literal, at the same address in parent and child
  int error_number = 0;
};

// Only system calls from here to RunInChild: the child of a process with threads may do no more.

// huge=always and not advise: fallocate, which reserves the segment, gives huge pages only then.
int MountTmpfs(Refusal* refusal) {
  const auto refuse = [refusal](const char* step) {
    *refusal = {step, errno};
    return -1;
  };
  const int context = static_cast<int>(::syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC));
  if (context < 0) return refuse("open a tmpfs");
  const UniqueFd owner(context);
  const auto set = [context](const char* key, const char* value) {
    return ::syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, key, value, 0) == 0;
  };
  if (!set("mode", "0700") || !set("size", "100%")) return refuse("configure a tmpfs");
  if (!set("huge", "always")) return refuse("set huge=always on a tmpfs");
  if (::syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return refuse("create a tmpfs");
  }
  const int root = static_cast<int>(
      ::syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV));
  return root >= 0 ? root : refuse("mount a tmpfs");
}

bool WriteWhole(const char* file, const char* text) {
  const UniqueFd fd(::open(file, O_WRONLY | O_CLOEXEC));
  const size_t n = std::strlen(text);
  return fd.valid() && ::write(fd.get(), text, n) == static_cast<ssize_t>(n);
}

// "ID ID 1" each: files on the tmpfs must belong to the user who opens them from outside.
struct IdMaps {
  std::string users, groups;
};

bool EnterNamespaces(const IdMaps& maps, Refusal* refusal) {
  const auto refuse = [refusal](const char* step) {
    *refusal = {step, errno};
    return false;
  };
  if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return refuse("make a user namespace");
  if (!WriteWhole("/proc/self/setgroups", "deny") ||
      !WriteWhole("/proc/self/uid_map", maps.users.c_str()) ||
      !WriteWhole("/proc/self/gid_map", maps.groups.c_str())) {
    return refuse("map this user into a user namespace");
  }
  return true;
}

// A Refusal, and the descriptor where there is one.
struct Message {
  Refusal refusal;
  iovec part{&refusal, sizeof refusal};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header{};

  Message() {
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
  }
};

[[noreturn]] void RunInChild(int socket, const IdMaps& maps) {
  Message message;
  int root = -1;
  if (EnterNamespaces(maps, &message.refusal)) root = MountTmpfs(&message.refusal);
  if (root >= 0) {
    cmsghdr* attached = CMSG_FIRSTHDR(&message.header);
    attached->cmsg_level = SOL_SOCKET;
    attached->cmsg_type = SCM_RIGHTS;
    attached->cmsg_len = CMSG_LEN(sizeof root);
    std::memcpy(CMSG_DATA(attached), &root, sizeof root);
  } else {
    message.header.msg_controllen = 0;
  }
  ::_exit(::sendmsg(socket, &message.header, MSG_NOSIGNAL) < 0 ? 1 : 0);
}

UniqueFd Receive(int socket, Refusal* refusal) {
  Message message;
  ssize_t n = 0;
  do {
    n = ::recvmsg(socket, &message.header, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  *refusal = message.refusal;
  if (n != static_cast<ssize_t>(sizeof message.refusal)) *refusal = {"hear from a child", EPIPE};
  const cmsghdr* attached = n > 0 ? CMSG_FIRSTHDR(&message.header) : nullptr;
  int root = -1;
  if (attached != nullptr && attached->cmsg_type == SCM_RIGHTS) {
    std::memcpy(&root, CMSG_DATA(attached), sizeof root);
  }
  return UniqueFd(root);
}

UniqueFd MountInNamespaces(Refusal* refusal) {
  const IdMaps maps{absl::StrCat(::geteuid(), " ", ::geteuid(), " 1"),
                    absl::StrCat(::getegid(), " ", ::getegid(), " 1")};
  int sockets[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0) {
    *refusal = {"make a socket pair", errno};
    return UniqueFd();
  }
  const UniqueFd ours(sockets[0]);
  UniqueFd childs(sockets[1]);
  const pid_t child = ::_Fork();  // without the atfork handlers of libraries
  if (child == 0) RunInChild(childs.get(), maps);
  childs.Reset();
  if (child < 0) {
    *refusal = {"fork", errno};
    return UniqueFd();
  }
  UniqueFd root = Receive(ours.get(), refusal);
  while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  return root;
}

}  // namespace

absl::StatusOr<UniqueFd> OpenHugeTmpfs() {
  Refusal refusal;
  UniqueFd root(MountTmpfs(&refusal));
  if (!root.valid()) root = MountInNamespaces(&refusal);
  if (root.valid()) return root;
  return absl::UnavailableError(absl::StrCat("could not ",
                                             refusal.step == nullptr ? "ask" : refusal.step, ": ",
                                             std::strerror(refusal.error_number)));
}

std::filesystem::path FdFolder(int fd) { return absl::StrCat("/proc/self/fd/", fd); }

}  // namespace hearth
