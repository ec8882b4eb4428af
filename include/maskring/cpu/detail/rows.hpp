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

/// Converts rows [first, first + count) of one head into `to`, padded.
template <class T>
void copy_rows(const view<const T, 4>& from, index_t b, index_t h, index_t first, index_t count,
               float* to) {
  const index_t dim = from.extent(3), stride = padded(dim);
  for (index_t i = 0; i < count; ++i, to += stride) {
    const T* row = &from(b, h, first + i, 0);
    for (index_t d = 0; d < dim; ++d) to[d] = static_cast<float>(row[d]);
    std::fill(to + dim, to + stride, 0.0f);
  }
}

/// Rows as broadcast operands: the caller's own where they are floats, else converted.
template <class T>
float_rows broadcast_rows(const view<const T, 4>& from, index_t b, index_t h, index_t first,
                          index_t count, float* buffer) {
  if constexpr (std::is_same_v<T, float>) {
    return {&from(b, h, first, 0), from.stride(2)};
  } else {
    copy_rows(from, b, h, first, count, buffer);
    return {buffer, padded(from.extent(3))};
  }
}

/// Rows as vector operands: the caller's own where they are floats in whole, aligned registers.
template <class T>
float_rows vector_rows(const view<const T, 4>& from, index_t b, index_t h, index_t first,
                       index_t count, float* buffer) {
  if constexpr (std::is_same_v<T, float>) {
    const float* row = &from(b, h, first, 0);
    const bool whole = from.extent(3) % row_padding == 0 && from.stride(2) % row_padding == 0;
    if (whole && reinterpret_cast<std::uintptr_t>(row) % 64 == 0) return {row, from.stride(2)};
  }
  copy_rows(from, b, h, first, count, buffer);
  return {buffer, padded(from.extent(3))};
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
    constexpr int step = 8;
    for (int lane = count; lane < padded_lanes(count); ++lane) {
      for (index_t d = 0; d < dim; ++d) to[d * query_block + lane] = 0;
    }
    for (index_t d0 = 0; d0 < dim; d0 += step) {
      const index_t d1 = std::min(dim, d0 + step);
      for (int lane = 0; lane < count; ++lane) {
        const float* row = from.row(lane);
        for (index_t d = d0; d < d1; ++d) to[d * query_block + lane] = factor * row[d];
      }
    }
  }
};

} // namespace maskring::cpu::detail
