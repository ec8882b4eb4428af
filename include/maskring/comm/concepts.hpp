// SPDX-License-Identifier: Apache-2.0
// What a communicator is: small concepts, so that an algorithm asks only for what it uses.
#pragma once

#include <maskring/core/range.hpp>

#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace maskring::comm {

/// One message of a group: contiguous memory to one peer or from it.
struct transfer {
  enum class way : std::uint8_t { send, receive };
  way direction = way::send;
  int peer = 0;
  void* data = nullptr; ///< only read when sending
  std::size_t bytes = 0;
};

template <class T>
transfer send(int peer, const T* data, index_t count) {
  return {transfer::way::send, peer, const_cast<T*>(data),
          static_cast<std::size_t>(count) * sizeof(T)};
}

template <class T>
transfer receive(int peer, T* data, index_t count) {
  return {transfer::way::receive, peer, data, static_cast<std::size_t>(count) * sizeof(T)};
}

/// The queue of host communicators: host work is done when the call that does it returns. Device
/// communicators take a stream in its place.
struct host_queue {};

/// Thrown on every surviving rank when another one has failed.
class rank_failed : public std::runtime_error {
public:
  rank_failed(int rank, const std::string& message)
      : std::runtime_error{"maskring: rank " + std::to_string(rank) + " failed: " + message},
        rank_{rank} {}
  int rank() const { return rank_; }

private:
  int rank_;
};

/// Thrown where what one rank sends is not what its peer expects.
class mismatch : public std::logic_error {
public:
  using std::logic_error::logic_error;
};

/// One of size() ranks, numbered from 0. The other concepts build on this one.
template <class C>
concept ranked = requires(const C& c) {
  { c.rank() } -> std::convertible_to<int>;
  { c.size() } -> std::convertible_to<int>;
};

/// Hands out the memory that messages are sent from and received into, so that a transport can
/// register it: `allocate(bytes)` returns a movable owner with `data()`, aligned to 64 bytes or
/// more.
template <class C>
concept buffer_source = requires(C& c, std::size_t bytes) {
  { c.allocate(bytes).data() } -> std::convertible_to<void*>;
};

/// Exchanges a few bytes of host memory, for set-up: `share(mine)` blocks and returns what each
/// rank gave, one behind the other in the order of ranks. All ranks call it with equal sizes.
template <class C>
concept sharing = ranked<C> && requires(C& c, std::span<const std::byte> mine) {
  { c.share(mine) } -> std::same_as<std::vector<std::byte>>;
};

/// Can say whether its ranks may read and write one another's tensors where they lie, so that
/// nothing has to be sent but word of what is done.
template <class C>
concept memory_sharing = sharing<C> && requires(const C& c) {
  { c.shares_memory() } -> std::same_as<bool>;
};

/// Sends and receives in groups whose messages progress together, while the caller computes.
///
/// `auto pending = c.start(queue, transfers)` starts a group, `pending.wait(queue)` ends it.
/// - Order: the messages of one sender to one receiver match in the order in which each side lists
///   them, over all groups. Sizes must agree; empty messages count. Within a group no order exists
///   between different peers, so a ring of sends and receives cannot block.
/// - Time: the group begins after the work that `queue` held at `start`; work put in the queue
///   after `wait` begins after the group's end; work put there between the two overlaps the group.
/// - Memory: from `start` to `wait`, sent memory must not change and received memory must not be
///   touched. The list of transfers itself may go when `start` returns.
/// - Errors: `start` and `wait` throw rank_failed when a peer has failed and mismatch when the
///   sizes of a message disagree; a transport may add its own. Nothing waits for ever.
/// One group is in flight at a time.
template <class C, class Queue>
concept point_to_point = ranked<C> &&
    requires(C& c, const Queue& queue, std::span<const transfer> group) {
  c.start(queue, group).wait(queue);
};

/// `all_gather(queue, mine, all, bytes)`: rank r's `bytes` bytes arrive at all + r·bytes,
/// everywhere.
template <class C, class Queue>
concept all_gathering = ranked<C> &&
    requires(C& c, const Queue& queue, const void* mine, void* all, std::size_t n) {
  c.all_gather(queue, mine, all, n);
};

/// `all_to_all(queue, from, to, bytes)`: what rank r holds at from + s·bytes arrives at rank s in
/// to + r·bytes.
template <class C, class Queue>
concept all_to_all_exchanging = ranked<C> &&
    requires(C& c, const Queue& queue, const void* from, void* to, std::size_t n) {
  c.all_to_all(queue, from, to, n);
};

/// `reduce_scatter(queue, from, to, count)`: to[i] on rank s is the sum over ranks of their
/// from[s·count + i], added in the order of ranks.
template <class C, class Queue>
concept reduce_scattering = ranked<C> &&
    requires(C& c, const Queue& queue, const float* from, float* to, index_t count) {
  c.reduce_scatter(queue, from, to, count);
};

} // namespace maskring::comm
