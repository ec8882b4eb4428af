// SPDX-License-Identifier: Apache-2.0
// Masks of partial tiles as bits, evaluated beside the consumers.
//
// Two warps of the producer's group, otherwise idle, ask the mask about each pair of a partial tile
// before its scores exist. A consumer then only turns bits into −inf: what a mask costs, in memory
// latency above all, is hidden, and its code is compiled once, in a loop.
#pragma once

#include <maskring/cuda/detail/fragment.cuh>
#include <maskring/cuda/detail/sm90/arguments.cuh>
#include <maskring/cuda/detail/sm90/tile_list.cuh>

#include <cstdint>
#include <limits>

namespace maskring::cuda::detail::sm90 {

/// Evaluates one item's tile. Of 64 threads, thread 4g + c writes the bits of rows g, g + 16, … for
/// the consumers' lanes whose columns begin at 2c; bit j of a row is its j-th column of such a lane.
template <class Arguments>
__device__ void evaluate_tile(const Arguments& args, const work_item& item, int tile, int thread,
                              mask_words<Arguments::policy>& words) {
  constexpr forward_policy P = Arguments::policy;
  constexpr int columns = P.tile.kv / 4;
  constexpr int rows = P.consumers() == 3 ? 1 : 2;  // at a time, for there are few registers
  const int lane = (thread / 4) % 8 * 4 + thread % 4;
  const int half = thread / 32;
  const int kv_first = tile * P.tile.kv + 2 * (thread % 4);
#pragma unroll 1
  for (int warp = 0; warp < P.tile.q / 16; warp += rows) {
    int q[rows];
#pragma unroll
    for (int t = 0; t < rows; ++t) {
      q[t] = min(item.q_tile * P.tile.q + 16 * (warp + t) + thread / 4, args.q_len - 1);
    }
#pragma unroll 1
    for (int w = 0; w < words.row_words; ++w) {
      std::uint32_t word[rows] = {};
#pragma unroll 4
      for (int j = 0; j < min(columns - 32 * w, 32); ++j) {
        const int kv = kv_first + 8 * ((32 * w + j) / 2) + j % 2;
        const int kv_read = min(kv, args.kv_len - 1);
#pragma unroll
        for (int t = 0; t < rows; ++t) {
          const bool visible =
              static_cast<bool>(args.mask(item.batch, item.head, q[t], kv_read)) & (kv < args.kv_len);
          word[t] |= static_cast<std::uint32_t>(visible) << j;
        }
      }
#pragma unroll
      for (int t = 0; t < rows; ++t) words.of[half][w][32 * (warp + t) + lane] = word[t];
    }
  }
}

/// The mask warps' part: every partial tile of every item, in the consumers' order.
template <class Arguments>
__device__ void evaluate_masks(const Arguments& args, forward_storage<Arguments::policy>& smem) {
  constexpr forward_policy P = Arguments::policy;
  const int thread = static_cast<int>(threadIdx.x) % 64;
  ring_cursor<P.mask_stages> cursor;
  for (std::uint32_t work_round = 0;; ++work_round) {
    smem.work_slot.wait_full(work_round);
    const work_item item = smem.work;
    __syncwarp();
    if (thread % 32 == 0) ptx::arrive(smem.work_slot.empty);
    if (!item.valid()) return;
    if (item.sees_nothing()) continue;
    for (int i = item.last_run - 1; i >= item.first_run; --i) {
      const tile_run run = run_of(args, i, P.tile.kv);
      for (int tile = run.end() - 1; tile >= run.first; --tile) {
        // Of a full run only the tile at the end of the sequence can be ragged: its first one here.
        if (!run.partial() && (tile + 1) * P.tile.kv <= args.kv_len) break;
        slot_barriers& slot = smem.mask_slots[cursor.stage()];
        slot.wait_empty(cursor.round());
        evaluate_tile(args, item, tile, thread, smem.masks[cursor.stage()]);
        __syncwarp();
        if (thread % 32 == 0) ptx::arrive(slot.full);
        cursor.advance();
      }
    }
  }
}

/// A consumer thread's bits of a tile.
template <forward_policy P>
struct mask_fragment {
  static constexpr int row_words = mask_words<P>::row_words;
  std::uint32_t of[2][row_words];

  __device__ void load(const mask_words<P>& words, int consumer_thread) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int w = 0; w < row_words; ++w) of[r][w] = words.of[r][w][consumer_thread];
    }
  }

  template <int Count>
  __device__ void apply(float (&s)[Count]) const {
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      const int j = 2 * (i >> 2) + (i & 1);
      const bool visible = (of[fragment_layout::row(i)][j / 32] >> (j % 32) & 1) != 0;
      s[i] = visible ? s[i] : -std::numeric_limits<float>::infinity();
    }
  }
};

}  // namespace maskring::cuda::detail::sm90
