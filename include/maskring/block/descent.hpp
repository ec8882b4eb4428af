// SPDX-License-Identifier: Apache-2.0
// Finding the runs of a row of tiles by halving: tiles are asked about together as long as
// possible.
#pragma once

#include <maskring/block/map.hpp>
#include <maskring/mask/concepts.hpp>

namespace maskring::detail {

/// The positions of tiles [first, last) of `size` tokens each, cut off at 0 and `length`; the first
/// tile begins at −lead.
constexpr range tile_span(index_t first, index_t last, int size, index_t length, index_t lead = 0) {
  return {max(first * size - lead, index_t{0}), min(last * size - lead, length) - 1};
}

/// The verdict of one tile: by ranges where these decide it, else by its elements if the mask needs
/// that.
template <mask_mod Mask>
constexpr verdict tile_verdict(const Mask& mask, int batch, int head, range q, range kv) {
  const verdict by_range = verdict_of(mask, {q, kv, batch, head});
  if constexpr (needs_elements<Mask>) {
    if (by_range == verdict::some) return elementwise_verdict(mask, batch, head, q, kv);
  }
  return by_range;
}

/// Calls emit(first, count, partial) for the tiles [first, last) of a row of queries that are not
/// empty, ascending. Descends only where the verdict is `some`, so the work is proportional to the
/// borders of the mask in this row times the logarithm of the row's length.
template <mask_mod Mask, class Emit>
constexpr void descend_row(const Mask& mask, int batch, int head, range q, index_t first,
                           index_t last, int tile_size, index_t kv_len, Emit&& emit,
                           index_t lead = 0) {
  // Explicit stack: the halves still to be asked about, nearest first. 2^32 tiles need 33 levels.
  struct span {
    index_t first, last;
  };
  span pending[40];
  int depth = 0;
  if (first < last) pending[depth++] = {first, last};
  while (depth > 0) {
    const span now = pending[--depth];
    const range kv = tile_span(now.first, now.last, tile_size, kv_len, lead);
    const bool leaf = now.last - now.first == 1;
    const verdict v =
        leaf ? tile_verdict(mask, batch, head, q, kv) : verdict_of(mask, {q, kv, batch, head});
    if (v == verdict::none) continue;
    if (leaf || v == verdict::all) {
      emit(static_cast<int>(now.first), static_cast<int>(now.last - now.first), v == verdict::some);
      continue;
    }
    const index_t middle = now.first + (now.last - now.first) / 2;
    pending[depth++] = span{middle, now.last};
    pending[depth++] = span{now.first, middle};
  }
}

} // namespace maskring::detail
