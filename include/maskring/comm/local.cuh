// SPDX-License-Identifier: Apache-2.0
// Ranks that are threads of one process and work on devices, several to a device if need be.
#pragma once

#include <maskring/comm/detail/local_endpoint.cuh>
#include <maskring/comm/detail/sum_parts.cuh>

#include <numeric>

namespace maskring::comm {

/// The handle of one rank of a local_group, for use by one thread; models every concept of
/// comm/concepts.hpp with cudaStream_t.
///
/// A message is one copy from the sender's memory to the receiver's, on a stream of the receiver's
/// own, between events of both streams. Host threads meet to exchange pointers and events; none of
/// them waits for a device.
class local {
public:
  /// Makes the rank's device the thread's current one.
  local(local_group& group, int rank) : local{group, everybody(group), rank} {
    detail::require_cuda(cudaSetDevice(device()), "cudaSetDevice");
  }

  int rank() const { return position_; }
  int size() const { return static_cast<int>(members_.size()); }
  int device() const { return group_->device(self()); }
  bool takes_turns() const { return group_->takes_turns(); }
  bool shares_memory() const {
    return group_->in_place() && std::all_of(members_.begin(), members_.end(), [&](int member) {
             return group_->device(member) == device();
           });
  }

  using buffer = detail::device_memory;
  /// Memory of the rank's device. @throws cuda::error.
  buffer allocate(std::size_t bytes) {
    const detail::device_scope scope{device()};
    return buffer{bytes};
  }

  class pending {
  public:
    void wait(cudaStream_t stream) { endpoint_.finish(stream, moving_); }
    /// Where the messages to this rank are copied.
    cudaStream_t queue() const { return endpoint_.queue(); }

  private:
    friend class local;
    pending(detail::local_endpoint endpoint, detail::local_transfers moving)
        : endpoint_{endpoint}, moving_{std::move(moving)} {}
    detail::local_endpoint endpoint_;
    detail::local_transfers moving_;
  };

  /// @throws std::invalid_argument for a peer that does not exist; what point_to_point says.
  pending start(cudaStream_t stream, std::span<const transfer> transfers) {
    std::vector<transfer> translated{transfers.begin(), transfers.end()};
    for (transfer& t : translated) {
      maskring::detail::require(t.peer >= 0 && t.peer < size(), "comm: peer is ", t.peer,
                                ", expected 0 to ", size() - 1);
      t.peer = members_[static_cast<std::size_t>(t.peer)];
    }
    return {endpoint(), endpoint().start(stream, translated)};
  }

  std::vector<std::byte> share(std::span<const std::byte> mine) {
    return endpoint().share(members_, mine);
  }

  void all_gather(cudaStream_t stream, const void* mine, void* all, std::size_t bytes) {
    exchange(
        stream, [&](int) { return static_cast<const std::byte*>(mine); }, all, bytes);
  }

  void all_to_all(cudaStream_t stream, const void* from, void* to, std::size_t bytes) {
    const auto part = [&](int rank) {
      return static_cast<const std::byte*>(from) + static_cast<std::size_t>(rank) * bytes;
    };
    exchange(stream, part, to, bytes);
  }

  /// Takes scratch memory of size()·count floats at its first use and keeps it.
  void reduce_scatter(cudaStream_t stream, const float* from, float* to, index_t count) {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
    const std::size_t needed = bytes * static_cast<std::size_t>(size());
    if (scratch_->bytes < needed) *scratch_ = {allocate(needed), needed};
    all_to_all(stream, from, scratch_->memory.data(), bytes);
    detail::sum_parts(static_cast<const float*>(scratch_->memory.data()), size(), count, to,
                      stream);
  }

  /// The ranks that give the same color, ordered by key and then by rank. All ranks call it; the
  /// result is part of the same local_group, and one group of transfers is in flight for both.
  local split(int color, int key) {
    const int mine[] = {color, key};
    const std::vector<std::byte> bytes = share(std::as_bytes(std::span{mine}));
    std::vector<int> all(2 * static_cast<std::size_t>(size()));
    std::memcpy(all.data(), bytes.data(), bytes.size());
    std::vector<std::pair<int, int>> chosen; // key, rank
    for (int r = 0; r < size(); ++r) {
      const auto i = 2 * static_cast<std::size_t>(r);
      if (all[i] == color) chosen.emplace_back(all[i + 1], r);
    }
    std::sort(chosen.begin(), chosen.end());
    std::vector<int> members;
    int position = 0;
    for (const auto& [unused, r] : chosen) {
      if (r == position_) position = static_cast<int>(members.size());
      members.push_back(members_[static_cast<std::size_t>(r)]);
    }
    return {*group_, std::move(members), position};
  }

private:
  struct scratch_memory {
    buffer memory;
    std::size_t bytes = 0;
  };

  local(local_group& group, std::vector<int> members, int position)
      : group_{&group},
        members_{std::move(members)},
        position_{position},
        scratch_{std::make_shared<scratch_memory>()} {
    maskring::detail::require(position >= 0 && position < size(), "local: rank is ", position,
                              ", expected 0 to ", size() - 1);
  }
  static std::vector<int> everybody(const local_group& group) {
    std::vector<int> out(static_cast<std::size_t>(group.size()));
    std::iota(out.begin(), out.end(), 0);
    return out;
  }
  int self() const { return members_[static_cast<std::size_t>(position_)]; }
  detail::local_endpoint endpoint() const { return {*group_, self()}; }

  template <class Part>
  void exchange(cudaStream_t stream, Part part, void* to, std::size_t bytes) {
    std::vector<transfer> group;
    for (int peer = 0; peer < size(); ++peer) {
      std::byte* place = static_cast<std::byte*>(to) + static_cast<std::size_t>(peer) * bytes;
      if (peer == position_) {
        if (part(peer) == place) continue;
        detail::require_cuda(
            cudaMemcpyAsync(place, part(peer), bytes, cudaMemcpyDeviceToDevice, stream),
            "cudaMemcpyAsync");
        continue;
      }
      const auto n = static_cast<index_t>(bytes);
      group.push_back(send(peer, part(peer), n));
      group.push_back(receive(peer, place, n));
    }
    start(stream, group).wait(stream);
  }

  local_group* group_;
  std::vector<int> members_; // ranks of the group
  int position_;
  std::shared_ptr<scratch_memory> scratch_;
};

/// Runs `work(local& comm)` on `ranks` threads, waits for all and returns what was sent. Work that
/// a rank has queued may still read other ranks' memory: wait for your stream before memory goes.
///
/// When a rank throws, the calls of the others throw rank_failed, naming it; the first error itself
/// is thrown to the caller.
/// @throws mismatch if a message was left unreceived.
template <class Work>
traffic run_local(int ranks, Work&& work, const local_options& opt = {}) {
  local_group group{ranks, opt};
  const auto body = [&](int rank) {
    const local_group::seat seat{group};
    try {
      local comm{group, rank};
      work(comm);
      group.finish(rank);
    } catch (const std::exception& error) {
      group.fail(rank, std::current_exception(), error.what());
    } catch (...) {
      group.fail(rank, std::current_exception(), "an exception that is no std::exception");
    }
  };
  std::vector<std::thread> running;
  running.reserve(static_cast<std::size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    try {
      running.emplace_back(body, rank);
    } catch (const std::exception& error) { // no more threads to be had
      const local_group::seat seat{group};
      group.fail(rank, std::current_exception(), error.what());
      break;
    }
  }
  for (std::thread& t : running) t.join();
  if (group.failure()) std::rethrow_exception(group.failure());
  group.require_all_received();
  return group.sent();
}

} // namespace maskring::comm
