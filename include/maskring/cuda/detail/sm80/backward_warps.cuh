// SPDX-License-Identifier: Apache-2.0
// Who is who in a block of the portable backward kernel, and where things lie in shared memory.
#pragma once

#include <maskring/cuda/detail/fragment.cuh>
#include <maskring/cuda/detail/sm80/backward_policy.cuh>
#include <maskring/cuda/detail/sm80/tile.cuh>

namespace maskring::cuda::detail::sm80 {

/// Warps are in two groups: of weights and dv, and of their gradients and dk. Blocks of 16 that
/// warps share along one side of a product they take in turns, so that each has its part of what a
/// mask leaves of a tile.
template <backward_policy P>
struct backward_warps {
  static constexpr int threads = P.threads();
  static constexpr int group_threads = threads / 2;

  // How many warps share the sides of each product, and what one owns, in blocks of 16 × 16.
  static constexpr int s_q = P.s_warps, s_kv = P.group_warps() / s_q;
  static constexpr int k_kv = P.k_warps, k_d = P.group_warps() / k_kv;
  static constexpr int q_q = P.q_warps, q_d = P.warps / q_q;
  static constexpr int s_rows = P.tile.q / s_q / 16, s_columns = P.tile.kv / s_kv / 16;
  static constexpr int k_rows = P.tile.kv / k_kv / 16, k_columns = P.dim / k_d / 16;
  static constexpr int q_rows = P.tile.q / q_q / 16, q_columns = P.dim / q_d / 16;
  static_assert(s_rows * s_columns * k_rows * k_columns * q_rows * q_columns > 0);

  using q_layout = tile_layout<P.tile.q, P.dim>;  ///< of output gradients too
  using k_layout = tile_layout<P.tile.kv, P.dim>; ///< of values too
  using score_layout = tile_layout<P.tile.q, P.tile.kv>;
  using scores = float[s_rows][8 * s_columns];

  /// The warp's number, in a way that lets the compiler know that it is one for the whole warp:
  /// what follows from it then takes no registers of the lanes.
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);

  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ bool of_weights() const { return warp < P.group_warps(); }
  __device__ int group_warp() const { return warp % P.group_warps(); }

  // Where the first block of the warp's share begins, of scores, of dk or dv, and of dq.
  __device__ int score_row() const { return group_warp() % s_q * 16; }
  __device__ int score_column() const { return group_warp() / s_q * 16; }
  __device__ int key_row() const { return group_warp() % k_kv * 16; }
  __device__ int key_column() const { return group_warp() / k_kv * k_columns * 16; }
  __device__ int query_row() const { return warp % q_q * 16; }
  __device__ int query_column() const { return warp / q_q * q_columns * 16; }

  // The policy's own functions with a run-time stage would need the policy in device memory.
  static __device__ int q_at(int stage) {
    constexpr int first = P.q_at(0), size = P.q_at(1) - first;
    return first + stage * size;
  }
  static __device__ int o_at(int stage) {
    constexpr int first = P.o_at(0), size = P.o_at(1) - first;
    return first + stage * size;
  }
  static __device__ int lse_at(int stage) {
    constexpr int first = P.rows_at(0), size = P.rows_at(1) - first;
    return first + stage * size;
  }
  static __device__ int delta_at(int stage) { return lse_at(stage) + 4 * P.tile.q; }
};

} // namespace maskring::cuda::detail::sm80
