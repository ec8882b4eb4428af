// SPDX-License-Identifier: Apache-2.0
// What becomes of a rank's queries at each step of a ring, tile by tile.
#pragma once

#include <maskring/core/problem.hpp>
#include <maskring/cp/plan.hpp>

#include <vector>

namespace maskring::cp::detail {

/// For attention calls that are told of each query tile whether its results are continued: one call
/// a step, over the tiles that see something of its shard. Step 0 takes those that see nothing at
/// all.
class tile_schedule {
public:
  /// @param tile rows of a kernel's tile.
  tile_schedule(const plan& road, int rank, index_t tile) : rows_{road.q_size(rank)}, tile_{tile} {
    const index_t count = (rows_ + tile - 1) / tile;
    const int ranks = road.ranks();
    std::vector<interval> seeing; // in tiles
    for (int step = 0; step < ranks; ++step) {
      const interval& rows = road.queries(rank, road.shard_at(rank, step));
      seeing.push_back(rows.empty() ? interval{}
                                    : interval{rows.lo / tile, (rows.hi + tile - 1) / tile});
    }
    parts_.assign(static_cast<std::size_t>(ranks * count), tile_part::idle);
    steps_.resize(static_cast<std::size_t>(ranks));
    for (index_t t = 0; t < count; ++t) {
      const interval self{t, t + 1};
      int last = -1;
      for (int step = 0; step < ranks; ++step) {
        if (seeing[static_cast<std::size_t>(step)].contains(self)) last = step;
      }
      std::uint8_t before = 0;
      for (int step = 0; step <= max(last, 0); ++step) {
        if (last >= 0 && !seeing[static_cast<std::size_t>(step)].contains(self)) continue;
        parts_[static_cast<std::size_t>(step * count + t)] =
            static_cast<std::uint8_t>(before | (step < last ? tile_part::stays_open : 0));
        before = tile_part::continues;
        interval& tiles = steps_[static_cast<std::size_t>(step)];
        tiles = hull(tiles, self);
      }
    }
  }

  index_t tile() const { return tile_; }

  /// The queries that take part in a step; their hull, from a tile's first on.
  interval queries(int step) const {
    const interval& tiles = steps_[static_cast<std::size_t>(step)];
    return {tiles.lo * tile_, min(rows_, tiles.hi * tile_)};
  }

  /// Bits of tile_part, tile by tile and step by step.
  const std::vector<std::uint8_t>& parts() const { return parts_; }

  /// Where those of a step's queries begin.
  index_t first_part(int step) const {
    return step * ((rows_ + tile_ - 1) / tile_) + steps_[static_cast<std::size_t>(step)].lo;
  }

private:
  index_t rows_, tile_;
  std::vector<interval> steps_; // in tiles
  std::vector<std::uint8_t> parts_;
};

} // namespace maskring::cp::detail
