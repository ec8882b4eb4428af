// SPDX-License-Identifier: Apache-2.0
// Equal parts of a step of a ring.
#pragma once

#include <maskring/comm/concepts.hpp>
#include <maskring/cp/plan.hpp>

namespace maskring::cp::detail {

/// The part `index` of `count`, of keys and of messages.
struct cut {
  int index = 0, count = 1;

  constexpr interval of(const interval& whole) const {
    return {whole.lo + whole.size() * index / count, whole.lo + whole.size() * (index + 1) / count};
  }
  comm::transfer of(comm::transfer whole) const {
    const auto up_to = [&](int i) {
      constexpr std::size_t aligned = 256;
      if (i == count) return whole.bytes;
      return whole.bytes * static_cast<std::size_t>(i) / static_cast<std::size_t>(count) / aligned *
             aligned;
    };
    whole.data = static_cast<std::byte*>(whole.data) + up_to(index);
    whole.bytes = up_to(index + 1) - up_to(index);
    return whole;
  }
  constexpr bool last() const { return index + 1 == count; }
};

/// How many cuts a step has: the same on all ranks, which work on cuts side by side. As many as
/// leave at most `most` keys in each.
inline int cuts_of(const plan& road, int step, index_t most) {
  index_t needed = 1;
  for (int rank = 0; rank < road.ranks(); ++rank) {
    needed = max(needed, road.needed(rank, road.shard_at(rank, step)).size());
  }
  return static_cast<int>((needed + most - 1) / most);
}

} // namespace maskring::cp::detail
