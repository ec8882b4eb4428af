// SPDX-License-Identifier: Apache-2.0
// Who may add to the gradient of a tile of queries, and when.
#pragma once

#include <maskring/cpu/detail/parallel.hpp>
#include <maskring/cpu/detail/walk.hpp>

#include <atomic>
#include <limits>
#include <utility>
#include <vector>

namespace maskring::cpu::detail {

/// The query tiles [first, end) between the first and the last that key tiles [first, end) of a map
/// appear in.
inline std::pair<int, int> query_tiles(const block_map_view& map, index_t b, index_t h,
                                       int first_tile, int end_tile) {
  int first = map.q_tiles(), end = 0;
  for (int j = first_tile; j < end_tile; ++j) {
    const index_t column = map.column(static_cast<int>(b), static_cast<int>(h), j);
    if (map.columns.begin(column) == map.columns.end(column)) continue;
    first = std::min(first, map.columns.begin(column)->first);
    end = std::max(end, (map.columns.end(column) - 1)->end());
  }
  return {first, end};
}

/// For each tile of queries, the turns of the key spans (so many key tiles each) that add to it:
/// ascending, spans that the map leaves empty left out. Spans are begun in ascending order too, so
/// whoever waits waits for somebody who has begun, and the first of all never waits.
class turns {
public:
  turns(const block_map_view& map, const problem& p, int span_tiles)
      : map_{map},
        heads_{p.q_heads},
        span_tiles_{span_tiles},
        next_(static_cast<std::size_t>(p.batch * p.q_heads * map.q_tiles())) {
    for (index_t b = 0, at = 0; b < p.batch; ++b) {
      for (index_t h = 0; h < p.q_heads; ++h) {
        for (int i = 0; i < map.q_tiles(); ++i, ++at)
          next_[static_cast<std::size_t>(at)] = first_span(b, h, i, 0);
      }
    }
  }

  /// Whether the map has anything for this query tile in this span.
  bool takes_part(index_t b, index_t h, int tile, int span) const {
    return first_span(b, h, tile, span) == span;
  }

  /// Returns when it is the span's turn; false if it will never be because a worker failed.
  bool wait(index_t b, index_t h, int tile, int span, const work_items& items) const {
    const std::atomic<int>& next = next_[slot(b, h, tile)];
    while (next.load(std::memory_order_acquire) != span) {
      if (items.failed()) return false;
      std::this_thread::yield();
    }
    return true;
  }

  void pass_on(index_t b, index_t h, int tile, int span) {
    next_[slot(b, h, tile)].store(first_span(b, h, tile, span + 1), std::memory_order_release);
  }

private:
  std::size_t slot(index_t b, index_t h, int tile) const {
    return static_cast<std::size_t>((b * heads_ + h) * map_.q_tiles() + tile);
  }

  /// The first span from `span` on that has part in the query tile.
  int first_span(index_t b, index_t h, int tile, int span) const {
    const index_t row = map_.row(static_cast<int>(b), static_cast<int>(h), tile);
    const int from = span * span_tiles_;
    const tile_run* run = first_run(map_.rows, row, from);
    if (run == map_.rows.end(row)) return std::numeric_limits<int>::max();
    return std::max(run->first, from) / span_tiles_;
  }

  block_map_view map_;
  index_t heads_;
  int span_tiles_;
  std::vector<std::atomic<int>> next_;
};

} // namespace maskring::cpu::detail
