// SPDX-License-Identifier: Apache-2.0
// What the Hopper forward kernel is told, and how it deals its work out.
#pragma once

#include <maskring/block/map.hpp>
#include <maskring/core/problem.hpp>
#include <maskring/cuda/detail/sm90/storage.cuh>
#include <maskring/score/concepts.hpp>

#include <cuda.h>

#include <algorithm>
#include <bit>
#include <type_traits>

namespace maskring::cuda::detail::sm90 {

/// The order in which query tiles of heads are worked on.
///
/// Heads are taken in sections whose keys and values fit the L2 cache together; within a section
/// all heads' longest query tiles come first, so that short ones fill the gaps at the end. Of maps
/// that do not know them the last ones come first, which are the longest under causal masks.
struct work_order {
  int q_tiles, heads, batches;
  int section; ///< heads to a section

  static work_order make(const problem& p, tile_shape tile, int processors, index_t l2_bytes) {
    const index_t q_tiles = (p.q_len + tile.q - 1) / tile.q;
    const index_t rows = std::max<index_t>(1, p.q_heads * p.batch);
    const index_t bytes = std::max<index_t>(1, p.kv_len * (p.qk_dim + p.v_dim) * 2);
    const index_t fit = l2_bytes / bytes;
    // With fewer items than this, a section's last ones cannot fill the gaps that its long ones
    // leave.
    const index_t even = 8 * processors / std::max<index_t>(1, q_tiles * p.group());
    index_t section = std::max<index_t>({fit, even, 1}) * p.group();
    return {static_cast<int>(q_tiles), static_cast<int>(p.q_heads), static_cast<int>(p.batch),
            static_cast<int>(std::min(section, rows))};
  }

  __host__ __device__ int count() const { return q_tiles * heads * batches; }

  __device__ work_item item(int index, const block_map_view& map) const {
    if (index >= count()) return {work_item::end, 0, 0, 0, 0};
    const int first = index / (section * q_tiles) * section;
    const int width = min(section, heads * batches - first);
    const int within = index - first * q_tiles;
    const int rank = within / width;
    const int head = first + within % width;
    work_item item{head / heads, head % heads, q_tiles - 1 - rank, 0, 1};
    if (map.rows.offsets != nullptr) {
      const index_t row = map.row(item.batch, item.head, 0);
      if (map.longest != nullptr) item.q_tile = map.longest[row + rank];
      item.first_run = map.rows.offsets[row + item.q_tile];
      item.last_run = map.rows.offsets[row + item.q_tile + 1];
    }
    return item;
  }
};

/// Everything one launch computes. The policy and the types are part of this type because nvcc 13.0
/// cannot launch a kernel that has a namespaced struct among its own template arguments.
template <forward_policy P, class T, class O, class Mask, class Score>
struct forward_arguments {
  static constexpr forward_policy policy = P;
  static constexpr bool has_score = !std::is_same_v<Score, maskring::score::none>;
  using input_type = T;
  using output_type = O;
  /// Whether results leave through shared memory and the copy engine: where the next item's queries
  /// have a place of their own meanwhile, and registers are not short, as with three groups.
  static constexpr bool copies_out = sizeof(O) == 2 && P.query_stages > 1 && P.consumers() < 3 &&
                                     output_layout(P).bytes() <= query_layout(P).bytes();

  CUtensorMap q, k, v;
  CUtensorMap copied_out; ///< of `out`, if `copies_out`
  view<O, 4> out;
  view<float, 3> lse;        ///< null: not wanted
  carried previous;          ///< null: starts from nothing
  view<const float, 1> sink; ///< null: none
  block_map_view map;        ///< rows.offsets null: every pair is visible
  work_order order;
  int* next_work; ///< counts work taken; 0 before and after the kernel
  Mask mask;
  Score score;
  float scale;
  int q_len, kv_len, group;
};

} // namespace maskring::cuda::detail::sm90
