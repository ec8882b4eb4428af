// SPDX-License-Identifier: Apache-2.0
// After the backward kernel: the gradient of the queries from the sums in memory.
#pragma once

#include <maskring/cuda/detail/fragment.cuh>
#include <maskring/cuda/detail/sm80/backward_policy.cuh>

namespace maskring::cuda::detail::sm80 {

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
  constexpr int groups = P.dim / (P.warps / P.q_warps) / 8;
  const int tile = static_cast<int>(blockIdx.x) % args.q_tiles;
  const int h = static_cast<int>(blockIdx.x) / args.q_tiles % args.heads;
  const int b = static_cast<int>(blockIdx.x) / args.q_tiles / args.heads;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_row = tile * P.tile.q + warp % P.q_warps * 16 +
                        fragment_layout::first_row(static_cast<int>(threadIdx.x) % 32);
  const int first_column = warp / P.q_warps * groups * 8;
  const float4* sums =
      reinterpret_cast<const float4*>(args.sums + index_t{blockIdx.x} * (P.tile.q * P.dim)) +
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
      store_quad<T>(args.dq, b, h, first_row + 16 * P.q_warps * m, first_column + 8 * g, upper);
      store_quad<T>(args.dq, b, h, first_row + 16 * P.q_warps * m + 8, first_column + 8 * g, lower);
    }
  }
}

} // namespace maskring::cuda::detail::sm80
