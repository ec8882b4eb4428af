// SPDX-License-Identifier: Apache-2.0
// The lines of a block map (its rows, then its columns) and their segments: one thread's work each.
#pragma once

#include <maskring/block/descent.hpp>
#include <maskring/core/errors.hpp>

namespace maskring::cuda::detail {

/// Tiles [first, last) of one line: a row (tiles of keys for a tile of queries) or a column.
struct line_segment {
  bool column;
  int batch, head;
  int line;         ///< the tile of queries (of keys, for a column) within its layer
  int first, last;  ///< the tiles across it
  bool opens, ends; ///< whether the line begins, ends with this segment
  index_t number;   ///< of the line among all rows, then all columns
};

/// How a block map is cut into segments. Long lines are split so that few lines still fill a GPU.
struct line_grid {
  map_shape shape;
  block_map_view sizes; ///< layers, lengths and tile; no data
  int segment = 1;      ///< tiles

  constexpr bool empty() const {
    return shape.batch == 0 || shape.heads == 0 || shape.q_len == 0 || shape.kv_len == 0;
  }
  constexpr index_t layers() const { return index_t{sizes.batch} * sizes.heads; }
  constexpr index_t rows() const { return layers() * sizes.q_tiles(); }
  constexpr index_t columns() const { return layers() * sizes.kv_tiles(); }
  constexpr index_t lines() const { return rows() + columns(); }
  constexpr int row_segments() const { return (sizes.kv_tiles() + segment - 1) / segment; }
  constexpr int column_segments() const { return (sizes.q_tiles() + segment - 1) / segment; }
  constexpr index_t items() const {
    return rows() * row_segments() + columns() * column_segments();
  }
  constexpr bool split() const { return row_segments() > 1 || column_segments() > 1; }

  /// Halves the segments, from whole lines down, until there are `wanted` of them or they hold
  /// `least` tiles.
  constexpr line_grid with_items(index_t wanted, int least) const {
    line_grid out = *this;
    for (out.segment = 1; out.segment < max(sizes.q_tiles(), sizes.kv_tiles());) out.segment *= 2;
    while (out.segment > least && out.items() < wanted) out.segment /= 2;
    return out;
  }
  constexpr line_grid with_segment(int tiles) const {
    line_grid out = *this;
    out.segment = tiles;
    return out;
  }

  /// A layer for each batch entry, for each head, or shared ones.
  constexpr line_grid with_layers(bool per_batch, bool per_head) const {
    line_grid out = *this;
    if (per_batch && !empty()) out.sizes.batch = static_cast<int>(shape.batch);
    if (per_head && !empty()) out.sizes.heads = static_cast<int>(shape.heads);
    return out;
  }

  /// Whether a mask that depends on these axes has a layer for each batch entry and head it needs.
  constexpr bool covers(std::uint8_t depends) const {
    return (!(depends & batch_axis) || sizes.batch == shape.batch) &&
           (!(depends & head_axis) || sizes.heads == shape.heads);
  }

  constexpr line_segment at(index_t item) const {
    const index_t row_items = rows() * row_segments();
    line_segment s;
    s.column = item >= row_items;
    if (s.column) item -= row_items;
    const int segments = s.column ? column_segments() : row_segments();
    const int lines = s.column ? sizes.kv_tiles() : sizes.q_tiles();
    const int across = s.column ? sizes.q_tiles() : sizes.kv_tiles();
    const index_t number = item / segments;
    const int part = static_cast<int>(item - number * segments);
    const index_t layer = number / lines;
    s.line = static_cast<int>(number - layer * lines);
    s.batch = static_cast<int>(layer / sizes.heads);
    s.head = static_cast<int>(layer - index_t{s.batch} * sizes.heads);
    s.first = part * segment;
    s.last = static_cast<int>(min(index_t{s.first} + segment, index_t{across}));
    s.opens = part == 0;
    s.ends = part == segments - 1;
    s.number = number + (s.column ? rows() : 0);
    return s;
  }
};

/// The grid of a map in one layer.
/// @throws std::invalid_argument for negative sizes or a tile without extent.
constexpr line_grid whole_grid(const map_shape& shape, tile_shape tile) {
  maskring::detail::require(shape.batch >= 0 && shape.heads >= 0 && shape.q_len >= 0 &&
                                shape.kv_len >= 0,
                            "make_block_map: shape is ", shape.batch, " x ", shape.heads, " x ",
                            shape.q_len, " x ", shape.kv_len, ", expected no negative sizes");
  maskring::detail::require(tile.q > 0 && tile.kv > 0, "make_block_map: tile is ", tile.q, " x ",
                            tile.kv, ", expected positive sizes");
  line_grid grid{shape, {}};
  grid.sizes.q_len = shape.q_len;
  grid.sizes.kv_len = shape.kv_len;
  grid.sizes.tile = tile;
  return grid;
}

} // namespace maskring::cuda::detail
