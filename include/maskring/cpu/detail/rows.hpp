// SPDX-License-Identifier: Apache-2.0
// Between the caller's tensors, of any element type and strides, and the kernels' blocks of floats.
#pragma once

#include <maskring/core/float16.hpp>
#include <maskring/core/view.hpp>
#include <maskring/cpu/detail/isa.hpp>

#include <algorithm>
#include <cstdint>

namespace maskring::cpu::detail {

/// Queries that are computed together, one a lane: the row length of every transposed block.
inline constexpr int query_block = 64;

/// Row-major blocks are padded with zeros to a multiple of this, so that every register fits.
inline constexpr int row_padding = 16;

constexpr index_t padded(index_t dim) {
  return (dim + row_padding - 1) / row_padding * row_padding;
}

/// Lanes that hold `count` queries: a multiple of every register.
constexpr int padded_lanes(int count) { return static_cast<int>(padded(count)); }

/// Consecutive rows of a matrix of floats.
struct float_rows {
  const float* data;
  index_t stride;
  const float* row(index_t i) const { return data + i * stride; }
};

/// Copies rows as floats, padded.
template <class T>
struct copy_kernel {
  const T* from;
  index_t from_stride;
  index_t count;
  index_t dim;
  float* to;

  template <class Isa>
  MASKRING_INLINE void operator()(Isa) const {
    const T* source = from;
    float* target = to;
    for (index_t i = 0; i < count; ++i, source += from_stride, target += padded(dim)) {
      index_t d = 0;
      for (; d + Isa::lanes <= dim; d += Isa::lanes) {
        typename Isa::reg x;
        simd<Isa>::load(x, source + d);
        simd<Isa>::store(x, target + d);
      }
      for (; d < padded(dim); ++d) target[d] = d < dim ? static_cast<float>(source[d]) : 0.0f;
    }
  }
};

/// Copies rows [first, first + count) of one head into `buffer`.
template <class T>
float_rows copied_rows(isa level, const view<const T, 4>& from, index_t b, index_t h, index_t first,
                       index_t count, float* buffer) {
  const index_t dim = from.extent(3);
  dispatch(level, copy_kernel<T>{&from(b, h, first, 0), from.stride(2), count, dim, buffer});
  return {buffer, padded(dim)};
}

/// Whether rows are floats that lie next to one another: far apart, with many of them on one set of
/// the cache, they are copied before they are used over and over.
template <class T>
bool usable_rows(const view<const T, 4>& from) {
  return std::is_same_v<T, float> && from.stride(2) == from.extent(3);
}

/// Rows as broadcast operands: the caller's own where they can be.
template <class T>
float_rows broadcast_rows(isa level, const view<const T, 4>& from, index_t b, index_t h,
                          index_t first, index_t count, float* buffer) {
  if constexpr (std::is_same_v<T, float>) {
    if (usable_rows(from)) return {&from(b, h, first, 0), from.stride(2)};
  }
  return copied_rows(level, from, b, h, first, count, buffer);
}

/// Rows as vector operands: the caller's own where they fill whole, aligned registers.
template <class T>
float_rows vector_rows(isa level, const view<const T, 4>& from, index_t b, index_t h, index_t first,
                       index_t count, float* buffer) {
  if constexpr (std::is_same_v<T, float>) {
    const float* row = &from(b, h, first, 0);
    const bool whole = from.extent(3) % row_padding == 0;
    if (whole && usable_rows(from) && reinterpret_cast<std::uintptr_t>(row) % 64 == 0) {
      return {row, from.stride(2)};
    }
  }
  return copied_rows(level, from, b, h, first, count, buffer);
}

/// to[d][lane] = factor·from[lane][d], zero in lanes from `count` on.
struct transpose_kernel {
  float_rows from;
  int count;
  index_t dim;
  float factor;
  float* to;

  template <class Isa>
  MASKRING_INLINE void operator()(Isa) const {
    constexpr int side = Isa::lanes;
    for (int lane = 0; lane < padded_lanes(count); lane += side) {
      index_t d = 0;
      for (; lane + side <= count && d + side <= dim; d += side) square<Isa>(lane, d);
      for (; d < dim; ++d) {
        for (int l = lane; l < lane + side; ++l) {
          to[d * query_block + l] = l < count ? factor * from.row(l)[d] : 0.0f;
        }
      }
    }
  }

  /// A square of registers: zipping its halves log2(side) times transposes it.
  template <class Isa>
  MASKRING_INLINE void square(int lane, index_t d) const {
    constexpr int side = Isa::lanes;
    typename Isa::reg x[side], zipped[side];
    MASKRING_UNROLL
    for (int i = 0; i < side; ++i) simd<Isa>::load(x[i], from.row(lane + i) + d);
    MASKRING_UNROLL
    for (int step = 1; step < side; step *= 2) {
      MASKRING_UNROLL
      for (int i = 0; i < side / 2; ++i) {
        zipped[2 * i] = x[i];
        zipped[2 * i + 1] = x[i + side / 2];
        Isa::zip(zipped[2 * i], zipped[2 * i + 1]);
      }
      MASKRING_UNROLL
      for (int i = 0; i < side; ++i) x[i] = zipped[i];
    }
    MASKRING_UNROLL
    for (int i = 0; i < side; ++i) {
      x[i] *= factor;
      simd<Isa>::store(x[i], to + (d + i) * query_block + lane);
    }
  }
};

} // namespace maskring::cpu::detail
