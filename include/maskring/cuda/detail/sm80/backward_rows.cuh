// SPDX-License-Identifier: Apache-2.0
// What the backward pass does row by row: before its kernel the sums that each row of dout needs,
// after it the gradient of the queries from the sums in memory, and that of the sinks.
#pragma once

#include <maskring/cuda/detail/fragment.cuh>
#include <maskring/cuda/detail/ptx/exp2.cuh>
#include <maskring/cuda/detail/sm80/backward_policy.cuh>
#include <maskring/cuda/detail/softmax.cuh>

#include <limits>

namespace maskring::cuda::detail::sm80 {

/// Eight elements from `column` on, 0 past `dim`.
template <class T>
__device__ inline void load_eight(float (&value)[8], const T* row, int column, int dim,
                                  bool vectors) {
  if (vectors) {
    constexpr int words = sizeof(T) * 2;  // of 4 bytes
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
  view<const float, 3> lse, dlse;  ///< dlse null: zero
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
__global__ void __launch_bounds__(Threads) sink_kernel(const __grid_constant__ sink_arguments args) {
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

/// dq from the sums that the backward kernel left, a tile as its threads held it.
template <backward_policy P, class T>
struct dq_arguments {
  static constexpr backward_policy policy = P;
  using input_type = T;
  row_store dq;
  const float* sums;
  float scale;
  int q_tiles, heads;
};

template <class Arguments>
__global__ void __launch_bounds__(Arguments::policy.threads())
    dq_kernel(const __grid_constant__ Arguments args) {
  constexpr backward_policy P = Arguments::policy;
  constexpr int rows = P.tile.q / P.q_warps / 16;
  constexpr int groups = P.qk_dim / (P.warps / P.q_warps) / 8;
  const int tile = static_cast<int>(blockIdx.x) % args.q_tiles;
  const int h = static_cast<int>(blockIdx.x) / args.q_tiles % args.heads;
  const int b = static_cast<int>(blockIdx.x) / args.q_tiles / args.heads;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_row = tile * P.tile.q + warp % P.q_warps * rows * 16 +
                        fragment_layout::first_row(static_cast<int>(threadIdx.x) % 32);
  const int first_column = warp / P.q_warps * groups * 8;
  const float4* sums = reinterpret_cast<const float4*>(
                           args.sums + index_t{blockIdx.x} * (P.tile.q * P.qk_dim)) +
                       threadIdx.x;
#pragma unroll
  for (int m = 0; m < rows; ++m) {
#pragma unroll
    for (int g = 0; g < groups; g += 4) {
      float4 four[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) four[i] = sums[(m * groups + g + i) * P.threads()];
      float upper[8], lower[8];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        upper[2 * i] = four[i].x * args.scale;
        upper[2 * i + 1] = four[i].y * args.scale;
        lower[2 * i] = four[i].z * args.scale;
        lower[2 * i + 1] = four[i].w * args.scale;
      }
      using T = typename Arguments::input_type;
      store_quad<T>(args.dq, b, h, first_row + 16 * m, first_column + 8 * g, upper);
      store_quad<T>(args.dq, b, h, first_row + 16 * m + 8, first_column + 8 * g, lower);
    }
  }
}

}  // namespace maskring::cuda::detail::sm80
