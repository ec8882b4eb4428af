// SPDX-License-Identifier: Apache-2.0
// Several blocks add to one query tile's dq: taking turns, so that the sum is the same each time.
#pragma once

#include <maskring/block/map.hpp>

namespace maskring::cuda::detail {

/// One block's turn at a query tile, in the order of the key tiles that the tile's row of the block
/// map names. The tile's counter holds 1 + the key tile that was added last, 0 before the first.
///
/// Finding one's predecessor means looking into the row; begin, look and wait are apart so that the
/// loads pass while the warp multiplies. All are called by one whole warp.
class dq_turn {
public:
  __device__ void begin(const block_map_view& map, int b, int h, int map_row) {
    if (map.rows.offsets == nullptr) return;
    const index_t row = map.row(b, h, map_row);
    first_ = map.rows.offsets[row];
    end_ = map.rows.offsets[row + 1];
  }

  __device__ void look(const block_map_view& map, const int* counter) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (first_ + lane < end_) run_ = map.rows.runs[first_ + lane];
    seen_ = read(counter);
  }

  /// Returns when all that come before `kv_tile` (a tile of the kernel) have added.
  __device__ void wait(const block_map_view& map, const int* counter, int kv_tile, int per_tile) {
    const int before = predecessor(map, kv_tile, per_tile) + 1;
    if (threadIdx.x % 32 == 0) wait(counter, before);
    __syncwarp();
  }

  /// What the counter says when it is `kv_tile`'s turn.
  __device__ int before(const block_map_view& map, int kv_tile, int per_tile) {
    return predecessor(map, kv_tile, per_tile) + 1;
  }
  /// By one thread: returns when it says so.
  __device__ void wait(const int* counter, int before) {
    while (before > 0 && seen_ != before) seen_ = read(counter);
  }

  /// By one thread, when all threads of the block have added and met at a barrier.
  static __device__ void pass_on(int* counter, int kv_tile) {
    asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(counter), "r"(kv_tile + 1) : "memory");
  }

private:
  // Without acquire: what follows are additions in the L2 cache, where the predecessor's already
  // are, and nothing is read.
  static __device__ int read(const int* counter) {
    int value;
    asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    return value;
  }

  /// The key tile before `kv_tile` in the row, −1 if it is the first.
  __device__ int predecessor(const block_map_view& map, int kv_tile, int per_tile) {
    if (map.rows.offsets == nullptr || kv_tile % per_tile != 0) return kv_tile - 1;
    const int tile = kv_tile / per_tile;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int before = -1; // in tiles of the map
    for (int at = first_;;) {
      // Each lane looks at one run: the last that begins before this tile holds the predecessor.
      const bool begins_before = at + lane < end_ && run_.first < tile;
      const unsigned lanes = __ballot_sync(~0u, begins_before);
      if (lanes == 0) break;
      const int last = 31 - __clz(static_cast<int>(lanes));
      before = min(__shfl_sync(~0u, run_.end(), last), tile) - 1;
      at += 32;
      if (last < 31 || at >= end_) break;
      if (at + lane < end_) run_ = map.rows.runs[at + lane];
    }
    return before < 0 ? -1 : (before + 1) * per_tile - 1;
  }

  int first_ = 0, end_ = 0;
  tile_run run_;
  int seen_ = 0; ///< of the counter
};

} // namespace maskring::cuda::detail
