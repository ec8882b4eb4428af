// SPDX-License-Identifier: Apache-2.0
// Where tiles come from, second way: tiles that ranges do not decide are looked at pair by pair.
#pragma once

#include <maskring/cuda/detail/block_map/lines.cuh>

#include <bit>

namespace maskring::cuda::detail {

/// 32 tiles of a row: which of them hold anything, and which of those only in part.
struct tile_bits {
  std::uint32_t kept = 0;
  std::uint32_t partial = 0;
};

/// What a line holds, read from two bits a tile. Segments are of 32 tiles.
struct bit_source {
  const tile_bits* bits; ///< [rows][words]

  template <class Emit>
  __device__ void walk(const line_grid& grid, const line_segment& s, Emit& emit) const {
    if (s.column) {
      const tile_bits* word = column(grid, s) + index_t{s.first} * grid.row_segments();
      for (int i = s.first; i < s.last; ++i, word += grid.row_segments()) {
        if (word->kept >> (s.line & 31) & 1) emit(i, 1, (word->partial >> (s.line & 31) & 1) != 0);
      }
    } else {
      const tile_bits word = bits[s.number * grid.row_segments() + s.first / 32];
      for (std::uint32_t left = word.kept; left != 0; left &= left - 1) {
        const int j = __ffs(static_cast<int>(left)) - 1;
        emit(s.first + j, 1, (word.partial >> j & 1) != 0);
      }
    }
  }

  __device__ int kind_before(const line_grid& grid, const line_segment& s) const {
    const int at = s.first - 1;
    const tile_bits word = s.column ? column(grid, s)[index_t{at} * grid.row_segments()]
                                    : bits[s.number * grid.row_segments() + at / 32];
    const int j = s.column ? s.line & 31 : at & 31;
    return (word.kept >> j & 1) == 0 ? 0 : 1 + static_cast<int>(word.partial >> j & 1);
  }

private:
  // The word that holds the column in the first row of its layer.
  __device__ const tile_bits* column(const line_grid& grid, const line_segment& s) const {
    const index_t row = grid.sizes.row(s.batch, s.head, 0);
    return bits + row * grid.row_segments() + s.line / 32;
  }
};

/// The verdict of a tile by its elements, looked at by a warp: exact, and done as soon as a pair
/// that is kept and one that is not were seen. A lane stays on one key and steps through queries.
template <mask_mod Mask>
__device__ verdict warp_verdict(const Mask& mask, int batch, int head, range q, range kv) {
  constexpr int depth = 16; // queries between two looks at what the other lanes saw
  const int q_end = static_cast<int>(q.hi) + 1, kv_end = static_cast<int>(kv.hi) + 1;
  unsigned seen = 0; // 1: something kept, 2: something dropped
  for (int first = static_cast<int>(kv.lo); first < kv_end; first += 32) {
    const int key = first + static_cast<int>(threadIdx.x % 32);
    for (int query = static_cast<int>(q.lo); query < q_end; query += depth) {
      if (key < kv_end) {
        bool any = false, all = true;
        if (query + depth <= q_end) {
#pragma unroll
          for (int i = 0; i < depth; ++i) {
            const bool kept = static_cast<bool>(mask(batch, head, query + i, key));
            any |= kept;
            all &= kept;
          }
        } else {
          for (int i = query; i < q_end; ++i) {
            const bool kept = static_cast<bool>(mask(batch, head, i, key));
            any |= kept;
            all &= kept;
          }
        }
        seen |= (any ? 1 : 0) | (all ? 0 : 2);
      }
      const unsigned together = __reduce_or_sync(0xffffffffu, seen);
      if (together == 3) return verdict::some;
    }
  }
  return __reduce_or_sync(0xffffffffu, seen) == 1 ? verdict::all : verdict::none;
}

/// One block a word: its tiles are asked about by ranges, together and then one by one, and those
/// still undecided are shared out among its warps.
template <mask_mod Mask>
__global__ void __launch_bounds__(256) find_tile_bits(Mask mask, line_grid grid, tile_bits* bits) {
  constexpr int warps = 8;
  const int words = grid.row_segments();
  const index_t row = blockIdx.x / words;
  const int word = static_cast<int>(blockIdx.x - row * words);
  const line_segment s = grid.at(row * words + word);
  const block_map_view& m = grid.sizes;
  const range q = maskring::detail::tile_span(s.line, s.line + 1, m.tile.q, m.q_len, m.q_lead());
  const std::uint32_t every = 0xffffffffu >> (32 - (s.last - s.first));

  const verdict together =
      verdict_of(mask, {q, maskring::detail::tile_span(s.first, s.last, m.tile.kv, m.kv_len),
                        s.batch, s.head});
  if (together != verdict::some) {
    if (threadIdx.x == 0) {
      bits[blockIdx.x] = {together == verdict::all ? every : 0, 0};
    }
    return;
  }
  __shared__ tile_bits found;
  if (threadIdx.x == 0) found = {};
  __syncthreads();
  for (int t = s.first + static_cast<int>(threadIdx.x) / 32; t < s.last; t += warps) {
    const range kv = maskring::detail::tile_span(t, t + 1, m.tile.kv, m.kv_len);
    verdict v = verdict_of(mask, {q, kv, s.batch, s.head});
    if (v == verdict::some) v = warp_verdict(mask, s.batch, s.head, q, kv);
    if (threadIdx.x % 32 == 0 && v != verdict::none) {
      atomicOr(&found.kept, 1u << (t - s.first));
      if (v == verdict::some) atomicOr(&found.partial, 1u << (t - s.first));
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) bits[blockIdx.x] = found;
}

} // namespace maskring::cuda::detail
