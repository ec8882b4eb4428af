// SPDX-License-Identifier: Apache-2.0
// A partial tile looked at more closely: the descent on verdicts goes on in blocks of 16 × 16.
#pragma once

#include <maskring/cuda/detail/kept_scores.cuh>

#include <cstdint>
#include <type_traits>

namespace maskring::cuda::detail::sm80 {

/// A set of the blocks of a tile of `Rows` × `Columns` blocks.
template <int Rows, int Columns>
struct block_set {
  static_assert(Rows * Columns <= 64);
  using word = std::conditional_t<Rows * Columns <= 32, std::uint32_t, std::uint64_t>;
  word bits = 0;

  __device__ bool has(int row, int column) const { return bits >> (row * Columns + column) & 1; }
  /// The set as counted from another block.
  __device__ block_set from(int row, int column) const {
    return {static_cast<word>(bits >> (row * Columns + column))};
  }
};

/// Of every tile that the map calls full.
struct all_blocks {
  static constexpr std::true_type has(int, int) { return {}; }
  static constexpr all_blocks from(int, int) { return {}; }
};

/// What a mask keeps of the blocks of a partial tile.
template <int Rows, int Columns>
struct tile_blocks {
  using set = block_set<Rows, Columns>;
  set seen; ///< partly or as a whole
  set some; ///< partly

  /// Of the tile that begins at query `q` and key `kv`; rows and keys past the end are hidden. By
  /// whole warps: each lane asks the mask about a block.
  template <class Arguments>
  __device__ static tile_blocks of(const Arguments& args, int batch, int head, int q, int kv) {
    tile_blocks out;
#pragma unroll
    for (int first = 0; first < Rows * Columns; first += 32) {
      const int block = first + static_cast<int>(threadIdx.x) % 32;
      const verdict v = block < Rows * Columns
                            ? block_verdict(args, batch, head, q + block / Columns * 16, 16,
                                            kv + block % Columns * 16, 16)
                            : verdict::none;
      using word = typename set::word;
      out.seen.bits |= static_cast<word>(__ballot_sync(~0u, v != verdict::none)) << first;
      out.some.bits |= static_cast<word>(__ballot_sync(~0u, v == verdict::some)) << first;
    }
    return out;
  }
};

} // namespace maskring::cuda::detail::sm80
