// SPDX-License-Identifier: Apache-2.0
// Short queries of grouped heads share a query tile, so that their keys are read once.
#pragma once

#include <maskring/block/map.hpp>
#include <maskring/shard/packed_heads.hpp>

namespace maskring::cuda::detail {

/// Calls `run` with a forward call's arguments: packed, where `Dims` say so and all rows of a key
/// head fit a query tile of the map, else as they are. The map's one row of query tiles then holds
/// for the packed rows too, unless it differs between heads.
template <class Dims, class T, class O, class Mask, class Score, class Run>
void with_packed_heads(const inputs<T>& in, const results<O>& out, const Mask& mask,
                       const block_map_view& map, const Score& score, const problem& p, Run&& run) {
  if constexpr (Dims::packs_heads) {
    if (p.group() > 1 && p.group() * p.q_len <= map.tile.q && map.heads == 1) {
      if (const auto rows = shard::packable(in, out, p)) {
        block_map_view tiles = map;
        tiles.q_len = p.group() * p.q_len;
        run(shard::pack(in, *rows), shard::pack(out, *rows), shard::packed_mask<Mask>{mask, *rows},
            tiles, shard::pack(score, *rows), shard::pack(p, *rows));
        return;
      }
    }
  }
  run(in, out, mask, map, score, p);
}

} // namespace maskring::cuda::detail
