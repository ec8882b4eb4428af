// SPDX-License-Identifier: Apache-2.0
// Communicators of some of the ranks of another one.
#pragma once

#include <maskring/comm/concepts.hpp>

#include <algorithm>
#include <cstring>

namespace maskring::comm {

/// Splits itself: `c.split(color, key)` is a communicator of the ranks that gave the same color, in
/// the order of their keys. All ranks call it.
template <class C>
concept splitting = ranked<C> && requires(C& c, int n) {
  { c.split(n, n) } -> ranked;
};

/// Some ranks of a communicator, renumbered; sends through it and shares its single group in
/// flight. Must not outlive it.
template <class Comm>
class subset {
public:
  /// @param members ranks of `parent`, of which this one is number `position`.
  subset(Comm& parent, std::vector<int> members, int position)
      : parent_{&parent}, members_{std::move(members)}, position_{position} {}

  int rank() const { return position_; }
  int size() const { return static_cast<int>(members_.size()); }

  auto allocate(std::size_t bytes) requires buffer_source<Comm> { return parent_->allocate(bytes); }

  template <class Queue>
  requires point_to_point<Comm, Queue>
  auto start(const Queue& queue, std::span<const transfer> group) {
    std::vector<transfer> translated{group.begin(), group.end()};
    for (transfer& t : translated) t.peer = members_.at(static_cast<std::size_t>(t.peer));
    return parent_->start(queue, translated);
  }

  std::vector<std::byte>
  share(std::span<const std::byte> mine) requires point_to_point<Comm, host_queue> {
    std::vector<std::byte> all(mine.size() * members_.size());
    std::vector<transfer> group;
    for (int peer = 0; peer < size(); ++peer) {
      group.push_back(send(peer, mine.data(), static_cast<index_t>(mine.size())));
      group.push_back(receive(peer, all.data() + static_cast<std::size_t>(peer) * mine.size(),
                              static_cast<index_t>(mine.size())));
    }
    start(host_queue{}, group).wait(host_queue{});
    return all;
  }

private:
  Comm* parent_;
  std::vector<int> members_;
  int position_;
};

/// The ranks of `comm` that give the same color, ordered by key and then by rank: by the
/// communicator's own means if it is `splitting`, else a subset. All ranks call it.
template <sharing Comm>
auto split(Comm& comm, int color, int key) {
  if constexpr (splitting<Comm>) {
    return comm.split(color, key);
  } else {
    const int mine[] = {color, key};
    const std::vector<std::byte> bytes = comm.share(std::as_bytes(std::span{mine}));
    std::vector<std::pair<int, int>> chosen; // key, rank
    for (int rank = 0; rank < comm.size(); ++rank) {
      int theirs[2];
      std::memcpy(theirs, bytes.data() + static_cast<std::size_t>(rank) * sizeof(theirs),
                  sizeof(theirs));
      if (theirs[0] == color) chosen.emplace_back(theirs[1], rank);
    }
    std::sort(chosen.begin(), chosen.end());
    std::vector<int> members;
    int position = 0;
    for (const auto& member : chosen) {
      if (member.second == comm.rank()) position = static_cast<int>(members.size());
      members.push_back(member.second);
    }
    return subset<Comm>{comm, std::move(members), position};
  }
}

} // namespace maskring::comm
