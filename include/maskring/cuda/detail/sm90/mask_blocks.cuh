// SPDX-License-Identifier: Apache-2.0
// Partial tiles of the Hopper forward kernel, looked at more closely.
//
// The descent on verdicts goes on within a tile: an idle warp of the producer's group asks the mask
// about each block of 16 queries (a consumer warp's rows) and 16 keys while the tile is on its way.
// Consumers then evaluate only the elements of blocks that are partial themselves.
#pragma once

#include <maskring/cuda/detail/fragment.cuh>
#include <maskring/cuda/detail/sm90/arguments.cuh>
#include <maskring/cuda/detail/sm90/tile_walk.cuh>
#include <maskring/mask/concepts.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace maskring::cuda::detail::sm90 {

/// What the mask keeps of the block of queries [q, q + 16) and keys [kv, kv + 16). Rows and keys
/// past the end count as hidden.
template <class Arguments>
__device__ verdict block_verdict(const Arguments& args, const work_item& item, int q, int kv) {
  if (q >= args.q_len || kv >= args.kv_len) return verdict::none;
  const verdict inside = verdict_of(args.mask, {.q = {q, min(q + 15, args.q_len - 1)},
                                                .kv = {kv, min(kv + 15, args.kv_len - 1)},
                                                .batch = item.batch,
                                                .head = item.head});
  return inside == verdict::all && kv + 16 > args.kv_len ? verdict::some : inside;
}

/// One warp of two: writes its share of the verdicts of a tile's blocks.
template <class Arguments>
__device__ void judge_tile(const Arguments& args, const work_item& item, int tile, int warp,
                           block_verdicts<Arguments::policy>& out) {
  constexpr forward_policy P = Arguments::policy;
  using verdicts = block_verdicts<P>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
  for (int word = warp; word < verdicts::words; word += judges) {
    const int block = 32 * word + lane;
    const verdict v =
        block_verdict(args, item, item.q_tile * P.tile.q + block / verdicts::columns * 16,
                      tile * P.tile.kv + block % verdicts::columns * 16);
    const std::uint32_t some = __ballot_sync(~0u, v == verdict::some);
    const std::uint32_t all = __ballot_sync(~0u, v == verdict::all);
    if (lane == 0) out.some[word] = some, out.all[word] = all;
  }
}

/// Warp `warp` of the judges: its share of every partial tile of every item, in the consumers'
/// order.
template <class Arguments>
__device__ void judge_blocks(const Arguments& args, forward_storage<Arguments::policy>& smem,
                             int warp) {
  constexpr forward_policy P = Arguments::policy;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  ring_cursor<P.stages> cursor;
  for (std::uint32_t work_round = 0;; ++work_round) {
    const work_item item = smem.take_work(work_round);
    if (!item.valid()) return;
    if (item.sees_nothing()) continue;
    for (tile_walk walk{args, item, P.tile.kv};; walk.advance()) {
      if (walk.partial()) {
        slot_barriers& slot = smem.verdict_slots[cursor.stage()];
        slot.wait_empty(cursor.round());
        judge_tile(args, item, walk.tile(), warp, smem.verdicts[cursor.stage()]);
        if (lane == 0) ptx::arrive(slot.full);
        cursor.advance();
      }
      if (walk.last()) break;
    }
  }
}

/// Which of a consumer thread's scores of a partial tile are kept.
template <forward_policy P>
class kept_scores {
  static constexpr int blocks = P.tile.kv / 16; // of 8 of the thread's scores each
  static constexpr int words = (blocks + 3) / 4;

public:
  /// Evaluates the blocks of the warp's 16 rows that are not all hidden or all kept.
  template <class Arguments>
  __device__ kept_scores(const Arguments& args, const block_verdicts<P>& verdicts, int strip,
                         score_origin at)
      : all_{verdicts.row(verdicts.all, strip)} {
#pragma unroll
    for (int w = 0; w < words; ++w) {
      // Four bits become four bytes of 8 equal bits.
      kept_[w] = ((all_ >> 4 * w & 15) * 0x00204081 & 0x01010101) * 0xff;
    }
#pragma unroll 1
    for (std::uint32_t left = verdicts.row(verdicts.some, strip); left != 0; left &= left - 1) {
      const int block = __ffs(left) - 1;
      std::uint32_t bits = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int q = min(at.q + 8 * fragment_layout::row(i), args.q_len - 1);
        const int kv = at.kv + 16 * block + fragment_layout::column(i);
        const bool keep =
            static_cast<bool>(args.mask(at.batch, at.head, q, min(kv, args.kv_len - 1)));
        bits |= static_cast<std::uint32_t>(keep & (kv < args.kv_len)) << i;
      }
#pragma unroll
      for (int w = 0; w < words; ++w) {
        kept_[w] |= (block / 4 == w ? bits : 0) << block % 4 * 8;
      }
    }
  }

  /// −inf for the others.
  template <int Count>
  __device__ void apply(float (&s)[Count]) const {
#pragma unroll
    for (int w = 0; w < words; ++w) {
      if ((~all_ >> 4 * w & 15) == 0) continue;
#pragma unroll
      for (int i = 32 * w; i < std::min(32 * w + 32, Count); ++i) {
        s[i] = (kept_[w] >> i % 32 & 1) != 0 ? s[i] : -std::numeric_limits<float>::infinity();
      }
    }
  }

private:
  std::uint32_t all_;         ///< blocks that are all kept
  std::uint32_t kept_[words]; ///< bit i: score i
};

} // namespace maskring::cuda::detail::sm90
