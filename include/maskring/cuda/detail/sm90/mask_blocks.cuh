// SPDX-License-Identifier: Apache-2.0
// Partial tiles of the Hopper forward kernel, looked at more closely.
//
// The descent on verdicts goes on within a tile: idle warps of the producer's group ask the mask
// about each block of 16 queries (a consumer warp's rows) and 16 keys while the tile is on its way.
// Of a partial block they find the elements that are kept, or leave it to the consumers where
// they would hold these up.
#pragma once

#include <maskring/cuda/detail/kept_scores.cuh>
#include <maskring/cuda/detail/sm90/arguments.cuh>
#include <maskring/cuda/detail/sm90/judge_place.cuh>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace maskring::cuda::detail::sm90 {

/// A warp: writes which elements of the blocks of strip `strip` are kept. `some` blocks are partial
/// and `all` kept; returns those of `some` that it has dealt with.
///
/// Of few partial blocks every element is looked at. Of many, only whether whole rows are kept, as
/// where a border between documents crosses the strip.
template <class Arguments, int Words>
__device__ std::uint32_t judge_strip(const Arguments& args, const judge_place<Arguments>& place,
                                     int strip, std::uint32_t some, std::uint32_t all,
                                     std::uint32_t (&out)[Words][32]) {
  std::uint32_t bits[Words];
  if (__popc(some) > blocks_judged) {
    const int first = __ffs(some) - 1, end = 32 - __clz(some);
    const int q = place.first_query() + 16 * strip + warp_words::lane_here() % 16;
    const verdict row = block_verdict(args, place.batch(), place.head(), q, 1,
                                      place.first_key() + 16 * first, 16 * (end - first));
    const std::uint32_t kept = __ballot_sync(~0u, row == verdict::all);
    if (__any_sync(~0u, row == verdict::some)) some = 0;
    const int lane = warp_words::lane_here();
    const std::uint32_t rows =
        (kept >> lane / 4 & 1) * 0x33333333 | (kept >> (lane / 4 + 8) & 1) * 0xcccccccc;
#pragma unroll
    for (int w = 0; w < Words; ++w) bits[w] = spread(all, w) | (spread(some, w) & rows);
  } else {
#pragma unroll
    for (int w = 0; w < Words; ++w) bits[w] = spread(all, w);
    if (place.at_first()) {
      some = 0;
    } else {
      const int lane = warp_words::lane_here();
      add_elements(args, some,
                   {place.batch(), place.head(),
                    place.first_query() + 16 * strip + fragment_layout::first_row(lane),
                    place.first_key() + fragment_layout::first_column(lane)},
                   bits);
    }
  }
#pragma unroll
  for (int w = 0; w < Words; ++w) out[w][warp_words::lane_here()] = bits[w];
  return some;
}

/// One warp of two: writes its share of the verdicts of a tile's blocks.
template <class Arguments>
__device__ void judge_tile(const Arguments& args, const judge_place<Arguments>& place,
                           block_verdicts<Arguments::policy>& out) {
  constexpr forward_policy P = Arguments::policy;
  using verdicts = block_verdicts<P>;
#pragma unroll 1
  for (int word = warp_words::thread_here() / 32 - first_judge; word < verdicts::words;
       word += judges) {
    const int block = 32 * word + warp_words::lane_here();
    const verdict v = block_verdict(args, place.batch(), place.head(),
                                    place.first_query() + block / verdicts::columns * 16, 16,
                                    place.first_key() + block % verdicts::columns * 16, 16);
    std::uint32_t some = __ballot_sync(~0u, v == verdict::some);
    const std::uint32_t all = __ballot_sync(~0u, v == verdict::all);
#pragma unroll 1
    for (int first = 0; P.judges_elements() && first < 32; first += verdicts::columns) {
      const int strip = (32 * word + first) / verdicts::columns;
      const std::uint32_t kept = all >> first & verdicts::every_block;
      if (kept == verdicts::every_block) continue;
      const std::uint32_t found = judge_strip(
          args, place, strip, some >> first & verdicts::every_block, kept, out.kept[strip]);
      some &= ~(found << first);
    }
    if (warp_words::lane_here() == 0) out.some[word] = some, out.all[word] = all;
  }
}

/// A warp of the judges: its share of every partial tile of every item, in the consumers' order.
template <class Arguments>
__device__ void judge_blocks(const Arguments& args, forward_storage<Arguments::policy>& smem) {
  judge_place place{args};
  while (place.take_item(smem)) {
    for (; !place.done(); place.advance()) {
      const auto cursor = place.cursor();
      slot_barriers& slot = smem.verdict_slots[cursor.stage()];
      slot.wait_empty(cursor.round());
      judge_tile(args, place, smem.verdicts[cursor.stage()]);
      ptx::arrive(slot.full);
    }
  }
}

/// Which of a consumer thread's scores of a partial tile are kept, by the judges' findings on the
/// warp's 16 rows and the elements of the blocks that they left.
template <class Arguments>
__device__ auto scores_kept(const Arguments& args, const block_verdicts<Arguments::policy>& found,
                            int strip, score_origin at) {
  constexpr forward_policy P = Arguments::policy;
  using verdicts = block_verdicts<P>;
  const std::uint32_t some = verdicts::row(found.some, strip);
  const std::uint32_t all = verdicts::row(found.all, strip);
  if constexpr (P.judges_elements()) {
    return kept_scores<P.tile.kv>{args, some, all, found.kept[strip], at};
  } else {
    return kept_scores<P.tile.kv>{args, some, all, at};
  }
}

} // namespace maskring::cuda::detail::sm90
