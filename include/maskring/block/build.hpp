// SPDX-License-Identifier: Apache-2.0
// Building a block map on the host.
#pragma once

#include <maskring/block/descent.hpp>
#include <maskring/block/transpose.hpp>
#include <maskring/core/errors.hpp>

namespace maskring {

/// The block map of a mask: for each tile of queries the runs of full and partial key tiles, and
/// the same transposed.
///
/// Batch entries and heads that the mask does not depend on share one layer; a classifiable mask
/// shows by itself what it depends on. Time is proportional to the border of the mask times a
/// logarithm, memory to the runs. Counterpart of FlexAttention's create_block_mask.
/// @throws std::invalid_argument for negative sizes or a tile without extent.
template <mask_mod Mask>
block_map make_block_map(const Mask& mask, const map_shape& shape, tile_shape tile = {}) {
  detail::require(shape.batch >= 0 && shape.heads >= 0 && shape.q_len >= 0 && shape.kv_len >= 0,
                  "make_block_map: shape is ", shape.batch, " x ", shape.heads, " x ", shape.q_len,
                  " x ", shape.kv_len, ", expected no negative sizes");
  detail::require(tile.q > 0 && tile.kv > 0, "make_block_map: tile is ", tile.q, " x ", tile.kv,
                  ", expected positive sizes");
  block_map_view sizes;
  sizes.q_len = shape.q_len;
  sizes.kv_len = shape.kv_len;
  sizes.tile = tile;
  const bool empty = shape.batch * shape.heads == 0 || shape.q_len * shape.kv_len == 0;
  if (!empty) {
    const kleene everywhere = truth_of(
        mask,
        {{0, shape.q_len - 1}, {0, shape.kv_len - 1}, {0, shape.batch - 1}, {0, shape.heads - 1}});
    if (everywhere.depends() & batch_axis) sizes.batch = static_cast<int>(shape.batch);
    if (everywhere.depends() & head_axis) sizes.heads = static_cast<int>(shape.heads);
  }

  block_map::csr rows;
  const int q_tiles = sizes.q_tiles();
  rows.offsets.reserve(static_cast<std::size_t>(sizes.batch) * sizes.heads * q_tiles + 1);
  for (int b = 0; b < sizes.batch; ++b) {
    for (int h = 0; h < sizes.heads; ++h) {
      for (int i = 0; i < q_tiles; ++i) {
        const int kv_tiles = empty ? 0 : sizes.kv_tiles();
        const auto row_begin = rows.runs.size();
        detail::descend_row(
            mask, b, h, detail::tile_span(i, i + 1, tile.q, shape.q_len, sizes.q_lead()), 0,
            kv_tiles, tile.kv, shape.kv_len, [&](int first, int count, bool partial) {
              tile_run* last = rows.runs.size() > row_begin ? &rows.runs.back() : nullptr;
              if (last && last->end() == first && last->partial() == partial) {
                *last = {last->first, last->count() + count, partial};
              } else {
                rows.runs.emplace_back(first, count, partial);
              }
            });
        rows.offsets.push_back(static_cast<std::int32_t>(rows.runs.size()));
      }
    }
  }
  block_map::csr columns =
      detail::transpose(rows, index_t{sizes.batch} * sizes.heads, q_tiles, sizes.kv_tiles());
  return {sizes, std::move(rows), std::move(columns)};
}

} // namespace maskring
