// SPDX-License-Identifier: Apache-2.0
// Where consecutive tokens of a shard stand in the whole sequence.
#pragma once

#include <maskring/cp/shape.hpp>

#include <vector>

namespace maskring::cp::detail {

/// Positions [position, position + count) of an interval stand at first, first + step, … globally.
struct stretch {
  index_t position = 0, count = 0;
  index_t first = 0, step = 1;
  constexpr index_t lowest() const { return min(first, first + (count - 1) * step); }
  constexpr index_t highest() const { return max(first, first + (count - 1) * step); }
};

/// Cuts an interval of a shard into stretches as long as possible: one or two for the layouts of
/// shard/layout.hpp, more for a layout that scatters.
template <shard::index_map Map>
std::vector<stretch> stretches_of(const Map& map, const interval& part) {
  std::vector<stretch> out;
  for (index_t i = part.lo; i < part.hi; ++i) {
    const index_t at = map(static_cast<int>(i));
    if (!out.empty()) {
      stretch& last = out.back();
      if (last.count == 1) last.step = at - last.first;
      if (at == last.first + last.count * last.step) {
        ++last.count;
        continue;
      }
    }
    out.push_back({i - part.lo, 1, at, 1});
  }
  return out;
}

} // namespace maskring::cp::detail
