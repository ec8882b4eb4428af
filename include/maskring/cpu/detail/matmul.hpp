// SPDX-License-Identifier: Apache-2.0
// The matrix product that all of attention's five products are: small, in cache, fp32.
#pragma once

#include <maskring/core/range.hpp>
#include <maskring/cpu/detail/isa.hpp>

namespace maskring::cpu::detail {

/// How a product reads its left operand.
enum class left {
  rows,   ///< a[row·a_stride + k]: the sum runs along its rows
  columns ///< a[k·a_stride + row]: the sum runs down its columns, so it is used transposed
};

/// Where a product goes.
enum class into {
  fresh,      ///< c = a·b
  sum,        ///< c += a·b
  compensated ///< the same, with what c loses by rounding kept in `lost` (W. Kahan, 1965)
};

/// c[row][·] = Σ_k a(row, k)·b[k][·], or +=; row-major b and c with strides. The entries of a are
/// broadcast, those of b and c are vectors, so nothing needs repacking.
struct product {
  const float* a;
  index_t a_stride;
  const float* b;
  index_t b_stride;
  float* c;
  index_t c_stride;
  int rows;
  int columns; ///< a multiple of the lanes of a register
  int depth;
  float* lost = nullptr; ///< for into::compensated, laid out like c: the sum is c − lost
};

template <class Isa, left Left, into Into, int Rows, int Vectors>
MASKRING_INLINE void product_block(const product& p, int row, int column) {
  using simd = detail::simd<Isa>;
  using reg = typename Isa::reg;
  const index_t a_stride = p.a_stride;
  const float* a = p.a + (Left == left::rows ? row * a_stride : row);
  const float* b = p.b + column;
  reg sum[Rows][Vectors];
  MASKRING_UNROLL
  for (int i = 0; i < Rows; ++i) {
    MASKRING_UNROLL
    for (int v = 0; v < Vectors; ++v) sum[i][v] = reg{};
  }
  for (int k = 0; k < p.depth; ++k) {
    reg right[Vectors];
    MASKRING_UNROLL
    for (int v = 0; v < Vectors; ++v) simd::load(right[v], b + v * Isa::lanes);
    MASKRING_UNROLL
    for (int i = 0; i < Rows; ++i) {
      const float x = Left == left::rows ? a[i * a_stride] : a[i];
      MASKRING_UNROLL
      for (int v = 0; v < Vectors; ++v) sum[i][v] += right[v] * x;
    }
    a += Left == left::rows ? 1 : a_stride;
    b += p.b_stride;
  }
  MASKRING_UNROLL
  for (int i = 0; i < Rows; ++i) {
    MASKRING_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      const index_t at = (row + i) * p.c_stride + column + v * Isa::lanes;
      // Added last, so that a large sum rounds once a block instead of once a term.
      if constexpr (Into != into::fresh) {
        reg before;
        simd::load(before, p.c + at);
        if constexpr (Into == into::compensated) {
          reg lost;
          simd::load(lost, p.lost + at);
          const reg term = sum[i][v] - lost;
          sum[i][v] = before + term;
          simd::store(sum[i][v] - before - term, p.lost + at);
        } else {
          sum[i][v] += before;
        }
      }
      simd::store(sum[i][v], p.c + at);
    }
  }
}

/// The last rows, fewer than a block: halves, quarters, ….
template <class Isa, left Left, into Into, int Rows, int Vectors>
MASKRING_INLINE void product_tail(const product& p, int row, int column) {
  if constexpr (Rows > 0) {
    if (p.rows - row >= Rows) {
      product_block<Isa, Left, Into, Rows, Vectors>(p, row, column);
      row += Rows;
    }
    product_tail<Isa, Left, Into, Rows / 2, Vectors>(p, row, column);
  }
}

template <class Isa, left Left, into Into, int Vectors>
MASKRING_INLINE int product_columns(const product& p, int column) {
  for (; column + Vectors * Isa::lanes <= p.columns; column += Vectors * Isa::lanes) {
    int row = 0;
    for (; row + Isa::rows <= p.rows; row += Isa::rows) {
      product_block<Isa, Left, Into, Isa::rows, Vectors>(p, row, column);
    }
    product_tail<Isa, Left, Into, 4, Vectors>(p, row, column);
  }
  return column;
}

template <left Left, into Into>
struct product_kernel {
  product p;

  template <class Isa>
  MASKRING_INLINE void operator()(Isa) const {
    int column = product_columns<Isa, Left, Into, Isa::vectors>(p, 0);
    if constexpr (Isa::vectors > 2) column = product_columns<Isa, Left, Into, 2>(p, column);
    product_columns<Isa, Left, Into, 1>(p, column);
  }
};

template <left Left, into Into>
void multiply(isa level, const product& p) {
  dispatch(level, product_kernel<Left, Into>{p});
}

} // namespace maskring::cpu::detail
