// SPDX-License-Identifier: Apache-2.0
// Storing rows of sums that lie spread over the lanes of a quad.
#pragma once

#include <maskring/core/view.hpp>
#include <maskring/cuda/detail/ptx/element.cuh>
#include <maskring/cuda/detail/ptx/red.cuh>

#include <cstdint>
#include <type_traits>

namespace maskring::cuda::detail {

/// Which gradients a backward call adds to what is there, instead of writing them.
struct accumulation {
  bool queries = false; ///< dq and dsink
  bool keys = false;    ///< dk and dv
};

/// A tensor [batch, head, sequence, dim] to write, of floats or of the inputs' type.
struct row_store {
  void* data = nullptr;
  index_t strides[3] = {};
  int length = 0, dim = 0;
  bool is_float = false;
  bool vectors = false;    ///< rows begin at multiples of 16 bytes and hold whole chunks of these
  bool accumulate = false; ///< add to the floats that are there

  template <class T>
  static row_store of(const view<T, 4>& tensor, bool accumulate = false) {
    row_store out{tensor.data,
                  {},
                  static_cast<int>(tensor.extents[2]),
                  static_cast<int>(tensor.extents[3]),
                  std::is_same_v<T, float>,
                  false,
                  accumulate};
    constexpr index_t chunk = 16 / sizeof(T);
    out.vectors = reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0 && out.dim % chunk == 0;
    for (int d = 0; d < 3; ++d) {
      out.strides[d] = tensor.strides[d];
      out.vectors = out.vectors && (tensor.extents[d] == 1 || tensor.strides[d] % chunk == 0);
    }
    return out;
  }
};

/// Where a backward call's results go.
struct gradient_stores {
  row_store dq, dk, dv;
  view<float, 1> dsink; ///< null: none
};

/// A call's place among several over the same queries and other keys, which add up dq in one
/// workspace: the first begins the sums, the last hands them out, with dsink.
struct call_place {
  bool first = true, last = true;
};

/// The quad's lanes exchange words so that lane c ends with word c of each lane, in lane order.
__device__ inline void exchange_in_quad(std::uint32_t (&word)[4]) {
  const bool odd = threadIdx.x & 1;
  const bool high = threadIdx.x & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const std::uint32_t got = __shfl_xor_sync(~0u, odd ? word[i] : word[i + 1], 1);
    word[i] = odd ? got : word[i];
    word[i + 1] = odd ? word[i + 1] : got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t got = __shfl_xor_sync(~0u, high ? word[i] : word[i + 2], 2);
    word[i] = high ? got : word[i];
    word[i + 2] = high ? word[i + 2] : got;
  }
}

/// Stores columns first + (0 … 31) of row `row`, rounded to T, in pieces of 16 bytes: this lane's
/// `value[2i]`, `value[2i + 1]` are columns 8i + 2(lane % 4), +1 of them. Rows past the end are
/// left out. Called by whole warps.
template <class T>
__device__ inline void store_quad_vectors(const row_store& to, int b, int h, int row, int first,
                                          const float (&value)[8]) {
  std::uint32_t word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) word[i] = ptx::pack<T>(value[2 * i], value[2 * i + 1]);
  exchange_in_quad(word); // now lane c holds columns 8c … 8c + 7
  const int column = first + 8 * (static_cast<int>(threadIdx.x) % 4);
  if (row >= to.length || column >= to.dim) return;
  const index_t start = b * to.strides[0] + h * to.strides[1] + row * to.strides[2];
  *reinterpret_cast<uint4*>(static_cast<std::uint16_t*>(to.data) + start + column) =
      make_uint4(word[0], word[1], word[2], word[3]);
}

/// The same for any tensor.
template <class T>
__device__ inline void store_quad(const row_store& to, int b, int h, int row, int first,
                                  const float (&value)[8]) {
  const int lane = static_cast<int>(threadIdx.x) % 4;
  const bool inside = row < to.length;
  const index_t start = b * to.strides[0] + h * to.strides[1] + row * to.strides[2];
  if (to.is_float) {
    float* out = static_cast<float*>(to.data) + start;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = first + 8 * i + 2 * lane;
      if (!inside || column >= to.dim) continue;
      if (to.vectors && to.accumulate) {
        // Nobody else adds to the row; but a load would have to be waited for.
        ptx::add_pair_to_global(out + column, value[2 * i], value[2 * i + 1]);
      } else if (to.vectors) {
        *reinterpret_cast<float2*>(out + column) = make_float2(value[2 * i], value[2 * i + 1]);
      } else {
        out[column] = to.accumulate ? out[column] + value[2 * i] : value[2 * i];
        if (column + 1 < to.dim) {
          out[column + 1] = to.accumulate ? out[column + 1] + value[2 * i + 1] : value[2 * i + 1];
        }
      }
    }
  } else if constexpr (!std::is_same_v<T, float>) {
    if (to.vectors) {
      store_quad_vectors<T>(to, b, h, row, first, value);
      return;
    }
    std::uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) word[i] = ptx::pack<T>(value[2 * i], value[2 * i + 1]);
    exchange_in_quad(word);
    auto* out = static_cast<std::uint16_t*>(to.data) + start;
    const int column = first + 8 * lane;
    if (!inside || column >= to.dim) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (column + i < to.dim) {
        out[column + i] = static_cast<std::uint16_t>(word[i / 2] >> (16 * (i % 2)));
      }
    }
  }
}

/// Writes columns first … first + 7 of a row that exists, as far as there are so many.
template <class T>
__device__ inline void store_chunk(const row_store& to, int b, int h, int row, int first,
                                   const float (&value)[8]) {
  const index_t start = b * to.strides[0] + h * to.strides[1] + row * to.strides[2] + first;
  if (to.is_float) {
    float* out = static_cast<float*>(to.data) + start;
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      if (to.vectors && first + i < to.dim) {
        *reinterpret_cast<float4*>(out + i) =
            make_float4(value[i], value[i + 1], value[i + 2], value[i + 3]);
      }
    }
    if (to.vectors) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (first + i < to.dim) out[i] = value[i];
    }
  } else if constexpr (!std::is_same_v<T, float>) {
    std::uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) word[i] = ptx::pack<T>(value[2 * i], value[2 * i + 1]);
    auto* out = static_cast<std::uint16_t*>(to.data) + start;
    if (to.vectors) {
      *reinterpret_cast<uint4*>(out) = make_uint4(word[0], word[1], word[2], word[3]);
      return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (first + i < to.dim) out[i] = static_cast<std::uint16_t>(word[i / 2] >> (16 * (i % 2)));
    }
  }
}

} // namespace maskring::cuda::detail
