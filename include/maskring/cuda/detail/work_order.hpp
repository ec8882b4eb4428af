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
  int part = 0;            ///< bits of tile_part

  constexpr bool valid() const { return batch != end; }
  constexpr bool sees_nothing() const { return first_run == last_run; }
  constexpr bool continues() const { return (part & tile_part::continues) != 0; }
  constexpr bool stays_open() const { return (part & tile_part::stays_open) != 0; }
  constexpr bool idle() const { return (part & tile_part::idle) != 0; }
};

/// The order in which query tiles of heads are worked on.
///
/// Heads that share keys are taken together, one such group after the other: whatever the length,
/// the blocks at work read the keys of a few of them, which the L2 cache holds, and power goes to
/// the products rather than to memory. Within a group the longest query tiles come first. The
/// shortest ones of all heads come at the end, where they fill the gaps that others leave. Of maps
/// that do not know them the last ones count as the longest, as they are under causal masks.
struct work_order {
  int q_tiles, heads, batches;
  int group; ///< query heads to a key head
  int early; ///< query tiles of each head that are dealt group by group, before the others

  /// @param followed other calls fill the gaps at the end, or there are none.
  static work_order make(const problem& p, tile_shape tile, int processors, bool followed) {
    const index_t q_tiles = (p.q_len + tile.q - 1) / tile.q;
    const index_t rows = p.q_heads * p.batch;
    // With fewer items at the end short ones cannot fill the gaps that long ones leave; with more
    // of them keys are read from memory again.
    constexpr index_t ending = 4;
    const index_t late =
        followed || rows == 0 ? 0 : std::min((ending * processors + rows - 1) / rows, q_tiles);
    return {static_cast<int>(q_tiles), static_cast<int>(p.q_heads), static_cast<int>(p.batch),
            static_cast<int>(p.group()), static_cast<int>(q_tiles - late)};
  }

  constexpr int count() const { return q_tiles * heads * batches; }

  /// Item `index`; past the last one there is none. `map` has the order's query tiles.
  constexpr work_item item(int index, const block_map_view& map) const {
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
  constexpr work_item last_first(int index) const {
    const int all = heads * batches;
    const bool leads = index < early * all;
    const int first = leads ? index / (group * early) * group : 0;
    const int width = leads ? group : all;
    const int within = index - early * (leads ? first : all);
    const int head = first + within % width;
    const int rank = within / width + (leads ? 0 : early);
    return {head / heads, head % heads, q_tiles - 1 - rank, 0, 1};
  }
};

} // namespace maskring::cuda::detail
