// SPDX-License-Identifier: Apache-2.0
// Walking the tiles of a row (or column) of a block map in steps of a kernel's own tile.
#pragma once

#include <maskring/block/map.hpp>

namespace maskring::cuda::detail {

/// The tiles of one row of runs, ascending. A tile of the map is `per_tile` tiles of the kernel;
/// the kernel has `tiles` of them, the last of which may end before the map's.
class tile_walk {
public:
  __device__ tile_walk(const tile_rows& rows, index_t row, int per_tile, int tiles)
      : per_tile_{per_tile}, tiles_{tiles} {
    if (rows.offsets == nullptr) { // no map: one full run
      tile_ = 0;
      last_ = tiles;
    } else {
      run_ = rows.begin(row);
      end_ = rows.end(row);
      open();
    }
  }

  __device__ bool done() const { return tile_ >= last_; }
  __device__ int tile() const { return tile_; }
  __device__ bool partial() const { return partial_; }

  __device__ void advance() {
    if (++tile_ >= last_) open();
  }

private:
  __device__ void open() {
    if (run_ == end_) return;
    const tile_run run = *run_++;
    tile_ = run.first * per_tile_;
    last_ = min(run.end() * per_tile_, tiles_);
    partial_ = run.partial();
  }

  const tile_run* run_ = nullptr;
  const tile_run* end_ = nullptr;
  int per_tile_, tiles_;
  int tile_ = 0, last_ = 0;
  bool partial_ = false;
};

} // namespace maskring::cuda::detail
