// SPDX-License-Identifier: Apache-2.0
// What the backward pass sums up row by row before its kernel, and the gradient of the sinks.
#pragma once

#include <maskring/core/view.hpp>
#include <maskring/cuda/detail/device.cuh>
#include <maskring/cuda/detail/ptx/exp2.cuh>
#include <maskring/cuda/detail/softmax.cuh>

#include <cstdint>
#include <limits>

namespace maskring::cuda::detail {

/// Eight elements from `column` on, 0 past `dim`.
template <class T>
__device__ inline void load_eight(float (&value)[8], const T* row, int column, int dim,
                                  bool vectors) {
  if (vectors) {
    constexpr int words = sizeof(T) * 2; // of 4 bytes
    std::uint32_t word[words];
#pragma unroll
    for (int i = 0; i < words; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(row + column + i * 4 / sizeof(T));
      word[i] = four.x, word[i + 1] = four.y, word[i + 2] = four.z, word[i + 3] = four.w;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if constexpr (sizeof(T) == 4) {
        value[i] = __uint_as_float(word[i]);
      } else {
        T element;
        element.bits = static_cast<std::uint16_t>(word[i / 2] >> (16 * (i % 2)));
        value[i] = static_cast<float>(element);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      value[i] = column + i < dim ? static_cast<float>(row[column + i]) : 0.0f;
    }
  }
}

/// delta = Σ dout · out − dlse and lse in powers of two, for rows padded to `padded` a head. A row
/// that saw nothing, or is padding, gets lse +inf: all its weights become 0.
template <class T, class O>
struct row_sums_arguments {
  view<const T, 4> dout;
  view<const O, 4> out;
  view<const float, 3> lse, dlse; ///< dlse null: zero
  float* lse2;
  float* delta;
  int heads, q_len, padded;
  index_t rows;
  bool vectors;
};

template <class T, class O>
__global__ void __launch_bounds__(256)
    row_sums_kernel(const __grid_constant__ row_sums_arguments<T, O> args) {
  const index_t at = index_t{blockIdx.x} * 32 + threadIdx.x / 8;
  const int lane = static_cast<int>(threadIdx.x) % 8;
  const int q = static_cast<int>(at % args.padded);
  const index_t layer = at / args.padded;
  const int h = static_cast<int>(layer % args.heads);
  const int b = static_cast<int>(layer / args.heads);
  const bool inside = at < args.rows && q < args.q_len;
  float sum = 0;
  if (inside) {
    const T* dout = &args.dout(b, h, q, 0);
    const O* out = &args.out(b, h, q, 0);
    const int dim = static_cast<int>(args.out.extents[3]);
    for (int column = 8 * lane; column < dim; column += 64) {
      float x[8], y[8];
      load_eight(x, dout, column, dim, args.vectors);
      load_eight(y, out, column, dim, args.vectors);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum += x[i] * y[i];
    }
  }
#pragma unroll
  for (int step = 1; step < 8; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane != 0 || at >= args.rows) return;
  constexpr float infinity = std::numeric_limits<float>::infinity();
  float lse = infinity;
  if (inside) {
    const float natural = args.lse(b, h, q);
    lse = natural == -infinity ? infinity : natural * log2_e;
    if (args.dlse.data != nullptr) sum -= args.dlse(b, h, q);
  }
  args.lse2[at] = lse;
  args.delta[at] = inside ? sum : 0.0f;
}

/// dsink = −Σ exp(sink − lse) · delta over the rows of each head, in one fixed order.
struct sink_arguments {
  view<const float, 1> sink;
  view<float, 1> dsink;
  const float* lse2;
  const float* delta;
  int batch, heads, padded, q_len;
  bool accumulate;
};

template <int Threads>
__global__ void __launch_bounds__(Threads)
    sink_kernel(const __grid_constant__ sink_arguments args) {
  const int h = static_cast<int>(blockIdx.x);
  const float logit = args.sink(h) * log2_e;
  float sum = 0;
  for (int b = 0; b < args.batch; ++b) {
    const index_t rows = (index_t{b} * args.heads + h) * args.padded;
    for (int q = static_cast<int>(threadIdx.x); q < args.q_len; q += Threads) {
      sum -= ptx::exp2(logit - args.lse2[rows + q]) * args.delta[rows + q];
    }
  }
  __shared__ float part[Threads];
  part[threadIdx.x] = sum;
  for (int step = Threads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < step) part[threadIdx.x] += part[threadIdx.x + step];
  }
  if (threadIdx.x == 0) args.dsink(h) = part[0] + (args.accumulate ? args.dsink(h) : 0.0f);
}

/// Queues row_sums_kernel for rows padded to `padded` a head.
template <class T, class O>
void sum_rows(const view<const T, 4>& dout, const view<const O, 4>& out,
              const view<const float, 3>& lse, const view<const float, 3>& dlse, int padded,
              float* lse2, float* delta, cudaStream_t stream) {
  const index_t rows = padded * out.extents[0] * out.extents[1];
  const bool vectors = has_vectors(dout) && has_vectors(out) && out.extents[3] % 8 == 0;
  launch(&row_sums_kernel<T, O>, "the launch of row_sums_kernel", (rows + 31) / 32, 256, 0, stream,
         {dout, out, lse, dlse, lse2, delta, static_cast<int>(out.extents[1]),
          static_cast<int>(out.extents[2]), padded, rows, vectors});
}

} // namespace maskring::cuda::detail
