// SPDX-License-Identifier: Apache-2.0
// Columns of runs from rows of runs, without visiting single tiles.
#pragma once

#include <maskring/block/map.hpp>

#include <algorithm>
#include <utility>
#include <vector>

namespace maskring::detail {

/// A sweep over the rows that looks only at where a row differs from the one above it: there the
/// runs of the columns begin and end. Work is proportional to the runs of both forms.
inline block_map::csr transpose(const block_map::csr& rows, index_t layers, int q_tiles,
                                int kv_tiles) {
  struct piece {
    int column;
    tile_run run;
  };
  struct open_run {
    int first = 0;
    int kind = 0; // 0 empty, 1 full, 2 partial
  };
  // What a row holds from `position` on, until the next change.
  class cursor {
  public:
    cursor(const tile_run* run, const tile_run* end) : run_{run}, end_{end} {}
    int kind(int position) {
      while (run_ != end_ && run_->end() <= position) ++run_;
      return run_ == end_ || position < run_->first ? 0 : 1 + run_->partial();
    }
    int next_change(int position, int limit) const {
      if (run_ == end_) return limit;
      return position < run_->first ? run_->first : run_->end();
    }

  private:
    const tile_run *run_, *end_;
  };

  block_map::csr columns;
  columns.offsets.reserve(static_cast<std::size_t>(layers) * kv_tiles + 1);
  std::vector<open_run> open(static_cast<std::size_t>(kv_tiles));
  std::vector<piece> pieces;
  std::vector<std::int32_t> next(static_cast<std::size_t>(kv_tiles));
  for (index_t layer = 0; layer < layers; ++layer) {
    pieces.clear();
    open.assign(open.size(), {});
    for (int i = 0; i <= q_tiles; ++i) {
      const auto runs_of = [&](int row) {
        if (row < 0 || row >= q_tiles) return cursor{nullptr, nullptr};
        const auto at = static_cast<std::size_t>(layer * q_tiles + row);
        return cursor{rows.runs.data() + rows.offsets[at], rows.runs.data() + rows.offsets[at + 1]};
      };
      cursor above = runs_of(i - 1), here = runs_of(i);
      for (int position = 0; position < kv_tiles;) {
        const int before = above.kind(position), now = here.kind(position);
        const int stop =
            std::min(above.next_change(position, kv_tiles), here.next_change(position, kv_tiles));
        if (before != now) {
          for (int column = position; column < stop; ++column) {
            open_run& run = open[static_cast<std::size_t>(column)];
            if (before != 0) pieces.push_back({column, {run.first, i - run.first, before == 2}});
            run = {i, now};
          }
        }
        position = stop;
      }
    }
    // Sort by column; the sweep made the pieces of one column in ascending order already.
    next.assign(next.size(), 0);
    for (const piece& p : pieces) ++next[static_cast<std::size_t>(p.column)];
    auto total = static_cast<std::int32_t>(columns.runs.size());
    for (std::int32_t& n : next) {
      const std::int32_t count = std::exchange(n, total);
      total += count;
      columns.offsets.push_back(total);
    }
    columns.runs.resize(static_cast<std::size_t>(total));
    for (const piece& p : pieces) {
      columns.runs[static_cast<std::size_t>(next[static_cast<std::size_t>(p.column)]++)] = p.run;
    }
  }
  return columns;
}

} // namespace maskring::detail
