// SPDX-License-Identifier: Apache-2.0
// The forward kernel for fp32 elements.
//
// A block owns a tile of queries and walks its key tiles. Scores pass through shared memory: four
// neighbouring threads share a row of them for the softmax, whatever layout the products have.
#pragma once

#include <maskring/core/problem.hpp>
#include <maskring/core/softmax.hpp>
#include <maskring/cuda/detail/fp32/tile.cuh>
#include <maskring/cuda/detail/row_result.cuh>
#include <maskring/cuda/detail/tile_walk.cuh>
#include <maskring/score/concepts.hpp>

#include <limits>
#include <type_traits>

namespace maskring::cuda::detail::fp32 {

/// Head dimensions (multiples of 64; smaller ones are filled with 0) and the tile.
struct forward_policy {
  int qk_dim = 128;
  int v_dim = 128;
  tile_shape tile{64, 32};
  float_math math = float_math::ieee;

  constexpr int wider() const { return qk_dim > v_dim ? qk_dim : v_dim; }
  // In floats: queries, keys or values, weights, and a factor a row.
  constexpr int keys_at() const { return tile.q * (qk_dim + 4); }
  constexpr int weights_at() const { return keys_at() + tile.kv * (wider() + 4); }
  constexpr int factors_at() const { return weights_at() + tile.q * (tile.kv + 4); }
  constexpr int bytes() const { return 4 * (factors_at() + tile.q); }
};

template <forward_policy P, class Mask, class Score>
struct forward_arguments {
  static constexpr forward_policy policy = P;
  static constexpr bool has_score = !std::is_same_v<Score, maskring::score::none>;
  view<const float, 4> q, k, v;
  row_target target;
  block_map_view map; ///< rows.offsets null: every pair is visible
  Mask mask;
  Score score;
  float scale;
  int q_tiles, kv_tiles, tiles_per_map_tile;
  int heads, group, q_len, kv_len;
  bool q_vectors, k_vectors, v_vectors;
};

template <class Arguments>
__global__ void __launch_bounds__(block_threads)
    forward_kernel(const __grid_constant__ Arguments args) {
  constexpr forward_policy P = Arguments::policy;
  constexpr float infinity = std::numeric_limits<float>::infinity();
  constexpr int per_row = block_threads / P.tile.q; // threads to a row of the softmax
  constexpr int weights_stride = row_stride<P.tile.kv>;
  extern __shared__ __align__(16) float memory[];
  float* const keys = memory + P.keys_at();
  float* const weights = memory + P.weights_at();
  float* const factors = memory + P.factors_at();

  const int q_tile = args.q_tiles - 1 - static_cast<int>(blockIdx.x) % args.q_tiles;
  const int h = static_cast<int>(blockIdx.x) / args.q_tiles % args.heads;
  const int b = static_cast<int>(blockIdx.x) / args.q_tiles / args.heads;
  const int kv_head = h / args.group;
  const int first_q = q_tile * P.tile.q;
  const int row = static_cast<int>(threadIdx.x) / per_row;
  const int part = static_cast<int>(threadIdx.x) % per_row;
  const int q = min(first_q + row, args.q_len - 1);

  fill<P.tile.q, P.qk_dim>(memory, args.q, b, h, first_q, args.q_vectors);
  sums<P.math, P.tile.q, P.v_dim> out;
  softmax_state<float> state;
  tile_walk<> walk{args.map.rows, args.map.row(b, h, first_q / args.map.tile.q),
                   args.tiles_per_map_tile, args.kv_tiles};
  for (; !walk.done(); walk.advance()) {
    const int first_kv = walk.tile() * P.tile.kv;
    const bool masked = walk.partial() || first_kv + P.tile.kv > args.kv_len;
    fill<P.tile.kv, P.qk_dim>(keys, args.k, b, kv_head, first_kv, args.k_vectors);
    ptx::commit_copies();
    ptx::wait_copies<0>();
    __syncthreads();
    {
      sums<P.math, P.tile.q, P.tile.kv> scores;
      scores.template add<P.qk_dim>(rows_tile<row_stride<P.qk_dim>>{memory},
                                    columns_tile<row_stride<P.qk_dim>>{keys});
      scores.visit([&](int i, int j, float s) { weights[i * weights_stride + j] = s; });
    }
    __syncthreads(); // the keys are used up
    fill<P.tile.kv, P.v_dim>(keys, args.v, b, kv_head, first_kv, args.v_vectors);
    ptx::commit_copies();

    float score[P.tile.kv / per_row];
    float largest = state.maximum;
#pragma unroll
    for (int i = 0; i < P.tile.kv / per_row; ++i) {
      const int column = part + per_row * i;
      const int kv = first_kv + column;
      score[i] = weights[row * weights_stride + column] * args.scale;
      const bool visible =
          !masked || (kv < args.kv_len && static_cast<bool>(args.mask(b, h, q, kv)));
      if (!visible) {
        score[i] = -infinity;
      } else if constexpr (Arguments::has_score) {
        score[i] = args.score(score[i], b, h, q, kv);
      }
      largest = fmaxf(largest, score[i]);
    }
#pragma unroll
    for (int step = 1; step < per_row; step *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < P.tile.kv / per_row; ++i) {
      const float weight = score[i] == -infinity ? 0.0f : expf(score[i] - largest);
      weights[row * weights_stride + part + per_row * i] = weight;
      sum += weight;
    }
#pragma unroll
    for (int step = 1; step < per_row; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    const float factor = rescale_factor(state.maximum, largest);
    state = {largest, state.sum * factor + sum};
    if (part == 0) factors[row] = factor;
    ptx::wait_copies<0>();
    __syncthreads();
    out.visit([&](int i, int, float& sum_of_values) { sum_of_values *= factors[i]; });
    out.template add<P.tile.kv>(rows_tile<weights_stride>{weights},
                                rows_tile<row_stride<P.v_dim>>{keys});
    __syncthreads(); // the values and weights are used up
  }
  ptx::wait_copies<0>();
  __syncthreads();

  const row_shares shares{args.target, state, b, h, first_q + row, h};
  float* const carried_shares = keys;
  if (part == 0) {
    factors[row] = shares.own;
    carried_shares[row] = shares.carried;
    if (first_q + row < args.q_len && args.target.lse.data != nullptr) {
      args.target.lse(b, h, first_q + row) = shares.lse;
    }
  }
  __syncthreads();
  const row_store& to = args.target.out;
  out.visit([&](int i, int column, float sum_of_values) {
    if (first_q + i >= args.q_len || column >= to.dim) return;
    float value = sum_of_values * factors[i];
    if (carried_shares[i] != 0) {
      value += carried_shares[i] * args.target.previous.out(b, h, first_q + i, column);
    }
    static_cast<float*>(
        to.data)[b * to.strides[0] + h * to.strides[1] + (first_q + i) * to.strides[2] + column] =
        value;
  });
}

} // namespace maskring::cuda::detail::fp32
