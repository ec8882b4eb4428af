// SPDX-License-Identifier: Apache-2.0
// A partial tile looked at more closely: the descent on verdicts goes on in blocks of 16 × 16.
#pragma once

#include <maskring/cuda/detail/kept_scores.cuh>

#include <cstdint>
#include <type_traits>

namespace maskring::cuda::detail::sm80 {

/// The keys of a tile that a step takes in, known to the compiler: all, or the half outside of
/// which the mask hides everything. A branch around each hidden block would cost more than the
/// block.
enum class key_part { all, lower, upper };

/// Which of `count` blocks along the keys, in ascending order, belong to it: [first, last).
struct block_range {
  int first, last;
};
constexpr block_range blocks_of(key_part part, int count) {
  return {part == key_part::upper ? count / 2 : 0, part == key_part::lower ? count / 2 : count};
}

/// What a mask keeps of the blocks of a partial tile of `Rows` × `Columns` of them.
template <int Rows, int Columns>
struct tile_blocks {
  static_assert(Rows * Columns <= 64);
  using set = std::conditional_t<Rows * Columns <= 32, std::uint32_t, std::uint64_t>;
  set seen = 0; ///< partly or as a whole; bit row · Columns + column
  set some = 0; ///< partly

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
      out.seen |= static_cast<set>(__ballot_sync(~0u, v != verdict::none)) << first;
      out.some |= static_cast<set>(__ballot_sync(~0u, v == verdict::some)) << first;
    }
    return out;
  }

  /// Whether a set has a block.
  static __device__ bool has(set blocks, int row, int column) {
    return blocks >> (row * Columns + column) & 1;
  }

  /// Whether the mask keeps anything of these keys.
  __device__ bool sees(key_part part) const {
    set columns = 0;
    for (int i = blocks_of(part, Columns).first; i < blocks_of(part, Columns).last; ++i) {
      for (int row = 0; row < Rows; ++row) columns |= set{1} << (row * Columns + i);
    }
    return (seen & columns) != 0;
  }
};

} // namespace maskring::cuda::detail::sm80
