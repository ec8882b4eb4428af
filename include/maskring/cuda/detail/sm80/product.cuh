// SPDX-License-Identifier: Apache-2.0
// Products of 16-bit tiles in shared memory, the sums in a warp's registers.
//
// The warps that share a side of the result take its blocks of 16 in turns (every `RowStep`-th one,
// counted from where the reader stands), so that each has its share of a tile that is partly
// hidden.
#pragma once

#include <maskring/cuda/detail/ptx/mma.cuh>
#include <maskring/cuda/detail/sm80/tile.cuh>
#include <maskring/cuda/detail/sm80/tile_blocks.cuh>

namespace maskring::cuda::detail::sm80 {

/// 16 × 16 sums (two fragments side by side) += a · b.
template <class T>
__device__ inline void add_block(float* sums, const std::uint32_t (&a)[4],
                                 const std::uint32_t (&b)[4]) {
  ptx::mma<T>(sums, a, b[0], b[1]);
  ptx::mma<T>(sums + 4, a, b[2], b[3]);
}

/// sums += a · bᵀ, both stored inner index last, of the blocks of columns in `Columns`.
template <class T, block_range Columns, int RowStep, int ColumnStep, class A, class B, int Rows,
          int Count>
__device__ inline void add_product_transposed(float (&sums)[Rows][Count],
                                              const block_reader<A, false>& a,
                                              const block_reader<B, true>& b) {
#pragma unroll
  for (int inner = 0; inner < A::columns / 16; ++inner) {
    std::uint32_t left[Rows][4], right[2][4];
#pragma unroll
    for (int m = 0; m < Rows; ++m) a.load(left[m], m * RowStep, inner);
    b.load(right[Columns.first % 2], Columns.first * ColumnStep, inner);
#pragma unroll
    for (int n = Columns.first; n < Columns.last; ++n) {
      if (n + 1 < Columns.last) b.load(right[(n + 1) % 2], (n + 1) * ColumnStep, inner);
#pragma unroll
      for (int m = 0; m < Rows; ++m) add_block<T>(sums[m] + 8 * n, left[m], right[n % 2]);
    }
  }
}

/// sums += a · b over the inner blocks in `Inner`, of the blocks of rows in `Rows`; `load(word,
/// inner, m)` reads a's blocks, and b is stored inner index first.
template <class T, block_range Inner, block_range Rows, class B, int Most, int Count, class Load>
__device__ inline void add_product(float (&sums)[Most][Count], const Load& load,
                                   const block_reader<B, false>& b) {
  std::uint32_t left[2][Most][4], right[2][Count / 8][4];
  const auto fetch = [&](int inner) {
#pragma unroll
    for (int n = 0; n < Count / 8; ++n) b.load_transposed(right[inner % 2][n], inner, n);
#pragma unroll
    for (int m = Rows.first; m < Rows.last; ++m) load(left[inner % 2][m], inner, m);
  };
  fetch(Inner.first);
#pragma unroll
  for (int inner = Inner.first; inner < Inner.last; ++inner) {
    if (inner + 1 < Inner.last) fetch(inner + 1);
#pragma unroll
    for (int m = Rows.first; m < Rows.last; ++m) {
#pragma unroll
      for (int n = 0; n < Count / 8; ++n) {
        add_block<T>(sums[m] + 8 * n, left[inner % 2][m], right[inner % 2][n]);
      }
    }
  }
}

} // namespace maskring::cuda::detail::sm80
