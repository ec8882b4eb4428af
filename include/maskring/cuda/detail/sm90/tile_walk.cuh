// SPDX-License-Identifier: Apache-2.0
// The key tiles of an item, in the order in which the Hopper forward kernel visits them.
#pragma once

#include <maskring/cuda/detail/sm90/arguments.cuh>

namespace maskring::cuda::detail::sm90 {

/// The key tiles of one item from last to first, the masked ones at the diagonal before the others.
class tile_walk {
public:
  template <class Arguments>
  __device__ tile_walk(const Arguments& args, const work_item& item, int kv_tile)
      : runs_{args.map.rows.offsets == nullptr ? nullptr : args.map.rows.runs},
        run_{item.last_run - 1},
        first_run_{item.first_run},
        ragged_tile_{args.kv_len % kv_tile == 0 ? -1 : args.kv_len / kv_tile} {
    enter(runs_ == nullptr ? tile_run{0, (args.kv_len + kv_tile - 1) / kv_tile, false}
                           : runs_[run_]);
    if (run_ > first_run_) next_ = runs_[run_ - 1];
  }

  __device__ int tile() const { return tile_; }
  __device__ bool last() const { return tile_ == run_start_ && run_ == first_run_; }
  /// Also true where keys past the end must be masked.
  __device__ bool partial() const { return partial_ || tile_ == ragged_tile_; }

  __device__ void advance() {
    if (tile_ != run_start_) {
      --tile_;
      return;
    }
    --run_;
    enter(next_);
    if (run_ > first_run_) next_ = runs_[run_ - 1]; // read a run ahead of its use
  }

private:
  __device__ void enter(tile_run run) {
    run_start_ = run.first;
    tile_ = run.first + run.count() - 1;
    partial_ = run.partial();
  }

  const tile_run* runs_;
  int run_, first_run_, ragged_tile_;
  tile_run next_{};
  int run_start_, tile_;
  bool partial_;
};

} // namespace maskring::cuda::detail::sm90
