// SPDX-License-Identifier: Apache-2.0
// Where tiles come from, first way: the mask is asked about ranges, by the host's descent.
#pragma once

#include <maskring/cuda/detail/block_map/lines.cuh>

namespace maskring::cuda::detail {

/// The mask as a row of queries sees it or, turned over, as a column of keys does.
template <mask_mod Mask>
struct oriented {
  Mask mask;
  bool turned;
  constexpr bool operator()(int batch, int head, int along, int across) const {
    return static_cast<bool>(mask(batch, head, turned ? across : along, turned ? along : across));
  }
  constexpr kleene operator()(range batch, range head, range along, range across) const {
    return ask(mask, batch, head, turned ? across : along, turned ? along : across);
  }
};

/// What a line holds, asked of a mask that answers about ranges.
///
/// Rows and columns are descents of their own. They agree on every tile if a tile is decided
/// whenever a rectangle around it is, as it is with everything made of range arithmetic.
template <mask_mod Mask>
struct range_source {
  Mask mask;

  constexpr std::uint8_t depends(const map_shape& shape) const {
    return truth_of(mask, {{0, shape.q_len - 1},
                           {0, shape.kv_len - 1},
                           {0, shape.batch - 1},
                           {0, shape.heads - 1}})
        .depends();
  }

  /// Calls emit(first, count, partial) for the tiles of the segment that are not empty, ascending.
  template <class Emit>
  constexpr void walk(const line_grid& grid, const line_segment& s, Emit& emit) const {
    const auto [along, tile, length, lead] = geometry(grid, s);
    maskring::detail::descend_row(oriented<Mask>{mask, s.column}, s.batch, s.head, along, s.first,
                                  s.last, tile, length, emit, lead);
  }

  /// What the last tile before the segment holds: 0 nothing, 1 full, 2 partial. Follows the descent
  /// of the segment before, so that both sides of the seam say the same of any mask.
  constexpr int kind_before(const line_grid& grid, const line_segment& s) const {
    const auto [along, tile, length, lead] = geometry(grid, s);
    const oriented<Mask> seen{mask, s.column};
    index_t first = s.first - grid.segment;
    const index_t last = s.first;
    for (;;) {
      const verdict v =
          verdict_of(seen, {along, maskring::detail::tile_span(first, last, tile, length, lead),
                            s.batch, s.head});
      if (v != verdict::some) return v == verdict::all ? 1 : 0;
      if (last - first == 1) return 2;
      first += (last - first) / 2;
    }
  }

private:
  struct line_geometry {
    range along;
    int tile;
    index_t length;
    index_t lead;
  };
  static constexpr line_geometry geometry(const line_grid& grid, const line_segment& s) {
    const block_map_view& m = grid.sizes;
    if (s.column)
      return {maskring::detail::tile_span(s.line, s.line + 1, m.tile.kv, m.kv_len), m.tile.q,
              m.q_len, m.q_lead()};
    return {maskring::detail::tile_span(s.line, s.line + 1, m.tile.q, m.q_len, m.q_lead()),
            m.tile.kv, m.kv_len, 0};
  }
};

} // namespace maskring::cuda::detail
