// SPDX-License-Identifier: Apache-2.0
// A block map as text, to look at in a terminal.
#pragma once

#include <maskring/block/map.hpp>

#include <algorithm>
#include <string>

namespace maskring {

/// One layer of the block map, a character a tile: '#' full, '+' partial, '.' empty. Larger maps
/// are drawn smaller, to at most `limit` × `limit` characters: a character then stands for a square
/// of tiles, '#' if all of them are full and '.' if all of them are empty.
inline std::string to_string(const block_map_view& map, int batch = 0, int head = 0,
                             int limit = 64) {
  const int q_tiles = map.q_tiles(), kv_tiles = map.kv_tiles();
  const int fold = std::max(1, (std::max(q_tiles, kv_tiles) + limit - 1) / std::max(1, limit));
  const int height = (q_tiles + fold - 1) / fold, width = (kv_tiles + fold - 1) / fold;
  std::string text;
  for (int y = 0; y < height; ++y) {
    const int first_row = y * fold, last_row = std::min(first_row + fold, q_tiles);
    std::string line(static_cast<std::size_t>(width), '.');
    for (int x = 0; x < width; ++x) {
      const int first = x * fold, last = std::min(first + fold, kv_tiles);
      index_t full = 0, partial = 0;
      for (int row = first_row; row < last_row; ++row) {
        const index_t at = map.row(batch, head, row);
        for (const tile_run* run = map.rows.begin(at); run != map.rows.end(at); ++run) {
          const int shared = std::min(run->end(), last) - std::max(run->first, first);
          if (shared > 0) (run->partial() ? partial : full) += shared;
        }
      }
      const index_t all = index_t{last_row - first_row} * (last - first);
      if (full + partial > 0) line[static_cast<std::size_t>(x)] = full == all ? '#' : '+';
    }
    text += line + '\n';
  }
  return text;
}

} // namespace maskring
