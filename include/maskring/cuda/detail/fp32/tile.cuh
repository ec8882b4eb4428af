// SPDX-License-Identifier: Apache-2.0
// Tiles of fp32 rows in shared memory.
#pragma once

#include <maskring/core/view.hpp>
#include <maskring/cuda/detail/fp32/product.cuh>
#include <maskring/cuda/detail/ptx/cp_async.cuh>

namespace maskring::cuda::detail::fp32 {

/// Floats from row to row of a tile with `Columns` columns: 4 more, so that 8 rows of one column
/// lie in different banks, and rows still begin at multiples of 16 bytes.
template <int Columns>
inline constexpr int row_stride = Columns + 4;

/// Copies rows [first, first + Rows) of one batch entry and head; what does not exist becomes 0.
/// Complete after the copies are waited for and the next barrier.
template <int Rows, int Columns>
__device__ inline void fill(float* to, const view<const float, 4>& tensor, int b, int h, int first,
                            bool vectors) {
  const int length = static_cast<int>(tensor.extents[2]), dim = static_cast<int>(tensor.extents[3]);
  const float* from = tensor.data + tensor.offset(b, h, 0, 0);
  if (vectors) {
    for (int i = static_cast<int>(threadIdx.x); i < Rows * Columns / 4; i += block_threads) {
      const int row = i / (Columns / 4), column = i % (Columns / 4) * 4;
      const bool valid = first + row < length && column < dim;
      const float* at = from + (valid ? (first + row) * tensor.strides[2] + column : 0);
      ptx::copy_async(static_cast<std::uint32_t>(
                          __cvta_generic_to_shared(to + row * row_stride<Columns> + column)),
                      at, valid);
    }
  } else {
    for (int i = static_cast<int>(threadIdx.x); i < Rows * Columns; i += block_threads) {
      const int row = i / Columns, column = i % Columns;
      to[row * row_stride<Columns> + column] =
          first + row < length && column < dim ? from[(first + row) * tensor.strides[2] + column]
                                               : 0.0f;
    }
  }
}

} // namespace maskring::cuda::detail::fp32
