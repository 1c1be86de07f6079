// How much may be inside at once. What does not fit is refused at the door (429, 503), never
// queued here: the worker's queue is the only one.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

namespace hearth::gateway {

// Counts units (requests, bytes) up to a limit. Not thread-safe: used on the gateway's one thread.
class Gate {
 public:
  // Gives its units back when it is destroyed.
  class Ticket {
   public:
    Ticket() = default;
    Ticket(Gate* gate, int64_t units) : gate_(gate), units_(units) { gate_->used_ += units; }
    Ticket(Ticket&& other) noexcept
        : gate_(std::exchange(other.gate_, nullptr)), units_(std::exchange(other.units_, 0)) {}
    Ticket& operator=(Ticket&& other) noexcept {
      std::swap(gate_, other.gate_);
      std::swap(units_, other.units_);
      return *this;
    }
    ~Ticket() {
      if (gate_ != nullptr) gate_->used_ -= units_;
    }
    // Takes more under the same ticket; false, and nothing taken, where it does not fit.
    bool Grow(int64_t units) {
      if (gate_ == nullptr || gate_->used_ + units > gate_->limit_) return false;
      gate_->used_ += units;
      units_ += units;
      return true;
    }

   private:
    Gate* gate_ = nullptr;
    int64_t units_ = 0;
  };

  explicit Gate(int64_t limit) : limit_(limit) {}
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  std::optional<Ticket> TryEnter(int64_t units = 1) {
    if (used_ + units > limit_) return std::nullopt;
    return Ticket(this, units);
  }
  int64_t used() const { return used_; }
  int64_t limit() const { return limit_; }

 private:
  const int64_t limit_;
  int64_t used_ = 0;
};

}  // namespace hearth::gateway
