// SPDX-License-Identifier: Apache-2.0
// Walking the tiles of a row (or column) of a block map in steps of a kernel's own tile.
#pragma once

#include <maskring/block/map.hpp>

namespace maskring::cuda::detail {

enum class direction { up, down };

/// The tiles of one row of runs, from the first or from the last. A tile of the map is `per_tile`
/// tiles of the kernel; the kernel has `tiles` of them, the last of which may end before the map's.
template <direction D = direction::up>
class tile_walk {
public:
  /// `rows` must outlive the walk: a kernel's argument costs no registers.
  __device__ tile_walk(const tile_rows& rows, index_t row, int per_tile, int tiles)
      : rows_{rows}, per_tile_{per_tile}, tiles_{tiles} {
    if (rows.offsets == nullptr) { // no map: one full run
      left_ = tiles;
      tile_ = D == direction::up ? 0 : tiles - 1;
    } else {
      run_ = rows.offsets[row];
      end_ = rows.offsets[row + 1];
      open();
    }
  }

  __device__ bool done() const { return left_ <= 0; }
  __device__ int tile() const { return tile_; }
  __device__ bool partial() const { return partial_; }

  __device__ void advance() {
    tile_ += D == direction::up ? 1 : -1;
    if (--left_ <= 0) open();
  }

private:
  __device__ void open() {
    if (run_ == end_) return;
    const tile_run run = rows_.runs[D == direction::up ? run_++ : --end_];
    const int first = run.first * per_tile_;
    const int last = min(run.end() * per_tile_, tiles_) - 1;
    tile_ = D == direction::up ? first : last;
    left_ = last - first + 1;
    partial_ = run.partial();
  }

  const tile_rows& rows_;
  int per_tile_, tiles_;
  int run_ = 0, end_ = 0; ///< the runs not yet opened
  int tile_ = 0;
  int left_ = 0; ///< tiles left in the open run, this one too
  bool partial_ = false;
};

} // namespace maskring::cuda::detail
