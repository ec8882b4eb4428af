// SPDX-License-Identifier: Apache-2.0
// From the runs of a block map to the blocks of keys that are computed at once.
#pragma once

#include <maskring/block/map.hpp>
#include <maskring/core/errors.hpp>
#include <maskring/cpu/detail/scores.hpp>

#include <algorithm>

namespace maskring::cpu::detail {

/// Keys whose scores are computed together.
inline constexpr int key_block = 64;

/// The first run of a row that ends behind `tile`.
inline const tile_run* first_run(const tile_rows& rows, index_t row, int tile) {
  return std::partition_point(rows.begin(row), rows.end(row),
                              [&](const tile_run& run) { return run.end() <= tile; });
}

/// Calls `visit(first key, keys, partial)` for consecutive blocks of the keys that a row of the map
/// keeps, within the key tiles [first_tile, end_tile).
template <class Visit>
void for_each_key_block(const block_map_view& map, index_t row, int first_tile, int end_tile,
                        const Visit& visit) {
  const tile_run* end = map.rows.end(row);
  for (const tile_run* run = first_run(map.rows, row, first_tile); run != end; ++run) {
    if (run->first >= end_tile) break;
    index_t key = index_t{std::max(run->first, first_tile)} * map.tile.kv;
    const index_t last =
        std::min(map.kv_len, index_t{std::min(run->end(), end_tile)} * map.tile.kv);
    while (key < last) {
      const int keys = static_cast<int>(std::min<index_t>(key_block, last - key));
      visit(key, keys, run->partial());
      key += keys;
    }
  }
}

/// What of a block of scores is kept: a look at the block itself, where a tile is larger than it.
template <class Mask>
verdict block_verdict(const Mask& mask, bool partial, const score_block& at) {
  if (!partial) return verdict::all;
  if constexpr (classifiable_mask<Mask>) {
    return verdict_of(mask, tile{.q = {at.q, at.q + at.queries - 1},
                                 .kv = {at.kv, at.kv + at.keys - 1},
                                 .batch = at.b,
                                 .head = at.h});
  } else {
    return verdict::some;
  }
}

/// @throws std::invalid_argument if the map was made for other sizes.
inline void check_map(const char* call, const block_map_view& map, const problem& p) {
  using maskring::detail::require;
  require(map.q_len == p.q_len && map.kv_len == p.kv_len, call, ": map is for ", map.q_len,
          " queries and ", map.kv_len, " keys, expected ", p.q_len, " and ", p.kv_len);
  require(map.batch == 1 || map.batch == p.batch, call, ": map has ", map.batch,
          " batch entries, expected 1 or ", p.batch);
  require(map.heads == 1 || map.heads == p.q_heads, call, ": map has ", map.heads,
          " heads, expected 1 or ", p.q_heads);
}

} // namespace maskring::cpu::detail
