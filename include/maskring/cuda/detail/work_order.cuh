// SPDX-License-Identifier: Apache-2.0
// How forward kernels deal their work out.
#pragma once

#include <maskring/block/map.hpp>
#include <maskring/core/problem.hpp>

#include <algorithm>

namespace maskring::cuda::detail {

/// One query tile of one head, and its part of the block map's list of runs.
struct work_item {
  static constexpr int end = -1; ///< as `batch`: no more work

  int batch, head, q_tile;
  int first_run, last_run; ///< [first_run, last_run)

  __device__ bool valid() const { return batch != end; }
  __device__ bool sees_nothing() const { return first_run == last_run; }
};

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

  /// Item `index`; past the last one there is none. `map` has the order's query tiles.
  __device__ work_item item(int index, const block_map_view& map) const {
    if (index >= count()) return {work_item::end, 0, 0, 0, 0};
    work_item item = last_first(index);
    if (map.rows.offsets != nullptr) {
      const index_t row = map.row(item.batch, item.head, 0);
      if (map.longest != nullptr) item.q_tile = map.longest[row + q_tiles - 1 - item.q_tile];
      item.first_run = map.rows.offsets[row + item.q_tile];
      item.last_run = map.rows.offsets[row + item.q_tile + 1];
    }
    return item;
  }

  /// Item `index` of those there are, in the order that needs no map.
  __device__ work_item last_first(int index) const {
    const int first = index / (section * q_tiles) * section;
    const int width = min(section, heads * batches - first);
    const int within = index - first * q_tiles;
    const int head = first + within % width;
    return {head / heads, head % heads, q_tiles - 1 - within / width, 0, 1};
  }
};

} // namespace maskring::cuda::detail
