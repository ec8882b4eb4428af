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
/// Heads are taken in sections, of as few as keep all blocks busy for about as long as the longest
/// query tile takes: whatever the length, the blocks at work read the keys of a few heads, which
/// the L2 cache holds, and power goes to the products rather than to memory. Within a section the
/// longest query tiles come first. The shortest ones of all heads come at the end, where they fill
/// the gaps that others leave. Of maps that do not know them the last ones count as the longest, as
/// they are under causal masks.
///
/// Where all query tiles take as long, each head (those that share keys together) is a section of
/// its own: its blocks then read the same keys at the same moment, once for several of them.
struct work_order {
  int q_tiles, heads, batches;
  int section; ///< query heads to a section, whole groups that share keys
  int early;   ///< query tiles of each head that are dealt section by section, before the others

  /// @param blocks as many as run at the same time.
  /// @param alike all query tiles take as long, or other calls fill the gaps at the end.
  static work_order make(const problem& p, tile_shape tile, int blocks, bool alike) {
    const index_t q_tiles = (p.q_len + tile.q - 1) / tile.q;
    const index_t rows = p.q_heads * p.batch;
    // One more item for each block: with fewer, short ones cannot fill the gaps that long ones
    // leave; with more, keys are read from memory again.
    const index_t late = alike || rows == 0 ? 0 : std::min((blocks + rows - 1) / rows, q_tiles);
    // The longest query tile takes twice as long as the average, as under causal masks.
    const index_t sections = std::clamp((rows * q_tiles + blocks) / (2 * blocks), index_t{1},
                                        std::max(rows, index_t{1}));
    const index_t heads = alike ? 1 : (rows + sections - 1) / sections;
    const index_t group = std::max(p.group(), index_t{1}); // with no heads there are none to a key
    const index_t section = (std::max(heads, index_t{1}) + group - 1) / group * group;
    return {static_cast<int>(q_tiles), static_cast<int>(p.q_heads), static_cast<int>(p.batch),
            static_cast<int>(section), static_cast<int>(q_tiles - late)};
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
    int first = 0, width = all;
    if (leads) {
      const int rest = all % section; // are left over, and form the first section
      const int head = index / early; // one of its section
      first = head < rest ? 0 : rest + (head - rest) / section * section;
      width = head < rest ? rest : section;
    }
    const int within = index - early * (leads ? first : all);
    const int head = first + within % width;
    const int rank = within / width + (leads ? 0 : early);
    return {head / heads, head % heads, q_tiles - 1 - rank, 0, 1};
  }
};

} // namespace maskring::cuda::detail
