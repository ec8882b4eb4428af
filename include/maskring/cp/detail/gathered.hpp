// SPDX-License-Identifier: Apache-2.0
// Where gathered keys stand: their global order, without the longest stretch that nobody needs.
#pragma once

#include <maskring/cp/detail/stretches.hpp>

#include <algorithm>

namespace maskring::cp::detail {

/// Global positions that lie one behind the other in memory: an interval, or two of them. Two
/// chunks of a zigzag layout under a window need no memory for what lies between.
class gathered_keys {
public:
  gathered_keys() = default;
  /// @param stretches of all needed keys.
  /// @param may_leap false: an interval, whatever nobody needs of it.
  explicit gathered_keys(const std::vector<std::vector<stretch>>& stretches, bool may_leap = true) {
    std::vector<interval> covered;
    for (const std::vector<stretch>& of_shard : stretches) {
      for (const stretch& s : of_shard) covered.push_back({s.lowest(), s.highest() + 1});
    }
    std::sort(covered.begin(), covered.end(),
              [](const interval& a, const interval& b) { return a.lo < b.lo; });
    interval gap;
    for (const interval& next : covered) {
      if (!head_.empty() && next.lo - head_.hi > gap.size()) gap = {head_.hi, next.lo};
      head_ = hull(head_, next);
    }
    // A small gap is not worth tiles that lie across it.
    if (!may_leap || 8 * gap.size() < head_.size()) return;
    tail_ = {gap.hi, head_.hi};
    head_.hi = gap.lo;
  }

  index_t first() const { return head_.lo; }
  index_t size() const { return head_.size() + tail_.size(); }

  /// Where a needed key stands in memory.
  index_t place(index_t global) const {
    return tail_.empty() || global < tail_.lo ? global - head_.lo
                                              : head_.size() + global - tail_.lo;
  }

  /// From the place in memory to the global position.
  shard::head_tail_map map() const {
    return {static_cast<int>(head_.size()), static_cast<int>(head_.lo),
            static_cast<int>(tail_.lo - head_.size())};
  }

private:
  interval head_, tail_;
};

} // namespace maskring::cp::detail
