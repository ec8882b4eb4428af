// SPDX-License-Identifier: Apache-2.0
// What ranks of one process share: the messages that are posted, and who has failed.
#pragma once

#include <maskring/comm/detail/device_objects.cuh>
#include <maskring/comm/threads.hpp>

#include <optional>

namespace maskring::comm {

/// How the ranks of a local communicator are run.
struct local_options {
  /// Rank r uses device devices[r mod devices.size()]; empty: all use the current device.
  std::vector<int> devices{};
  /// One rank's host thread runs at a time and hands over where it has to wait for another's.
  /// Needed for comm::capture, since a graph must not be added to by two threads at once. In this
  /// mode ranks must not wait for one another by means of their own.
  bool turns = false;
  /// Drivers whose ranks are all on one device read and add to one another's tensors where they
  /// lie, instead of sending copies.
  bool in_place = true;
};

namespace detail {
class local_endpoint;
}

/// What the ranks of one `local` communicator share. Must outlive their handles.
class local_group {
public:
  /// @throws std::invalid_argument for no ranks or devices that do not exist; cuda::error.
  explicit local_group(int ranks, const local_options& opt = {})
      : turns_{opt.turns}, in_place_{opt.in_place} {
    maskring::detail::require(ranks > 0, "local_group: ranks is ", ranks, ", expected 1 or more");
    int devices = 0;
    detail::require_cuda(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
    for (int rank = 0; rank < ranks; ++rank) {
      const int device = opt.devices.empty()
                             ? detail::current_device()
                             : opt.devices[static_cast<std::size_t>(rank) % opt.devices.size()];
      maskring::detail::require(device >= 0 && device < devices, "local_group: device is ", device,
                                ", expected 0 to ", devices - 1);
      members_.emplace_back(device, ranks);
    }
    pairs_.resize(members_.size() * members_.size());
    for (const member& a : members_) {
      for (const member& b : members_) reach(a.device, b.device);
    }
  }

  int size() const { return static_cast<int>(members_.size()); }
  int device(int rank) const { return at(rank).device; }
  bool takes_turns() const { return turns_; }
  bool in_place() const { return in_place_; }

  /// As thread_group.
  void fail(int rank, std::exception_ptr error, const std::string& message) {
    const turn lock{*this};
    if (!failure_) {
      failure_ = error;
      failed_rank_ = rank;
      failure_message_ = message;
    }
    changed_.notify_all();
  }
  void finish(int rank) {
    const turn lock{*this};
    at(rank).finished = true;
    changed_.notify_all();
  }
  std::exception_ptr failure() {
    const std::lock_guard lock{mutex_};
    return failure_;
  }
  traffic sent() {
    const std::lock_guard lock{mutex_};
    traffic out{size(), {}};
    for (const pair& p : pairs_) out.cells.push_back(p.sent);
    return out;
  }
  void require_all_received() {
    const std::lock_guard lock{mutex_};
    for (int from = 0; from < size(); ++from) {
      for (int to = 0; to < size(); ++to) {
        std::size_t left = 0;
        for (const message& m : between(from, to).posted) left += m.taken ? 0 : m.bytes;
        if (left == 0) continue;
        throw mismatch{"maskring: comm: rank " + std::to_string(to) + " ended without receiving " +
                       std::to_string(left) + " bytes from rank " + std::to_string(from)};
      }
    }
  }

  /// Runs a rank's thread where ranks take turns: it holds the turn while this lives.
  class seat {
  public:
    explicit seat(local_group& group) : lock_{group.mutex_, std::defer_lock} {
      if (group.turns_) lock_.lock();
    }

  private:
    std::unique_lock<std::mutex> lock_;
  };

private:
  friend class detail::local_endpoint;

  /// Something that a sender offers; the receiver fetches it.
  struct message {
    const void* data;
    std::size_t bytes;
    bool taken = false;
  };
  struct pair {
    std::deque<message> posted;                // oldest first; the sender removes what was taken
    std::deque<std::vector<std::byte>> shared; // host memory
    traffic::cell sent;
  };
  /// Events belong to the device whose stream records them.
  struct member {
    member(int on, int ranks) : device{on} {
      const detail::device_scope scope{device};
      stream = detail::make_stream();
      ready = detail::make_event();
      done = detail::make_event();
      for (int from = 0; from < ranks; ++from) taken.push_back(detail::make_event());
    }
    int device;
    detail::stream stream;
    detail::event ready;              // what this rank sends is complete
    detail::event done;               // what this rank receives has arrived
    std::vector<detail::event> taken; // [sender]: it may change again what it sent to this rank
    bool finished = false;
  };

  /// The lock on everything here; where ranks take turns, the caller's thread already has it.
  class turn {
  public:
    explicit turn(local_group& group)
        : held_{group.turns_},
          lock_{held_ ? std::unique_lock{group.mutex_, std::adopt_lock}
                      : std::unique_lock{group.mutex_}} {}
    ~turn() {
      if (held_) lock_.release();
    }
    std::unique_lock<std::mutex>& lock() { return lock_; }

  private:
    bool held_;
    std::unique_lock<std::mutex> lock_;
  };

  static void reach(int from, int to) {
    if (from == to) return;
    const detail::device_scope scope{from};
    int possible = 0;
    detail::require_cuda(cudaDeviceCanAccessPeer(&possible, from, to), "cudaDeviceCanAccessPeer");
    if (!possible) return; // copies then pass through the host
    const cudaError_t status = cudaDeviceEnablePeerAccess(to, 0);
    if (status == cudaErrorPeerAccessAlreadyEnabled) {
      cudaGetLastError();
    } else {
      detail::require_cuda(status, "cudaDeviceEnablePeerAccess");
    }
  }

  member& at(int rank) { return members_[static_cast<std::size_t>(rank)]; }
  const member& at(int rank) const { return members_[static_cast<std::size_t>(rank)]; }
  pair& between(int from, int to) { return pairs_[static_cast<std::size_t>(from * size() + to)]; }

  void require_alive() const {
    if (failure_) throw rank_failed{failed_rank_, failure_message_};
  }

  const bool turns_, in_place_;
  std::deque<member> members_;
  std::vector<pair> pairs_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::exception_ptr failure_;
  int failed_rank_ = -1;
  std::string failure_message_;
};

} // namespace maskring::comm
