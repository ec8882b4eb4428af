// SPDX-License-Identifier: Apache-2.0
// The backward kernel for fp32 elements: the portable kernel's order of work, see
// sm80/backward_kernel.cuh, with dq added straight to its tensor.
#pragma once

#include <maskring/cuda/detail/dq_order.cuh>
#include <maskring/cuda/detail/fp32/tile.cuh>
#include <maskring/cuda/detail/learn.cuh>
#include <maskring/cuda/detail/softmax.cuh>
#include <maskring/cuda/detail/store.cuh>
#include <maskring/cuda/detail/tile_walk.cuh>

#include <type_traits>

namespace maskring::cuda::detail::fp32 {

struct backward_policy {
  int qk_dim = 128;
  int v_dim = 128;
  tile_shape tile{32, 32};
  float_math math = float_math::ieee;

  // In floats: keys, values, queries, output gradients, weights, their gradients.
  constexpr int v_at() const { return tile.kv * (qk_dim + 4); }
  constexpr int q_at() const { return v_at() + tile.kv * (v_dim + 4); }
  constexpr int o_at() const { return q_at() + tile.q * (qk_dim + 4); }
  constexpr int p_at() const { return o_at() + tile.q * (v_dim + 4); }
  constexpr int ds_at() const { return p_at() + tile.q * (tile.kv + 4); }
  constexpr int bytes() const { return 4 * (ds_at() + tile.q * (tile.kv + 4)); }
};

template <backward_policy P, class Mask, class Score>
struct backward_arguments {
  static constexpr backward_policy policy = P;
  static constexpr bool has_score = !std::is_same_v<Score, maskring::score::none>;
  view<const float, 4> q, k, v, dout;
  view<float, 4> dq; ///< cleared, or to be added to
  row_store dk, dv;
  block_map_view map;
  Mask mask;
  Score score;
  float scale;
  const float* lse2;
  const float* delta;
  int* dq_done;
  int* next_unit;
  int heads, kv_heads, group, q_len, kv_len;
  int q_tiles, kv_tiles, q_tiles_per_map_tile, kv_tiles_per_map_tile;
  bool q_vectors, k_vectors, v_vectors, dout_vectors;
  bool ordered;
};

template <class Arguments>
__global__ void __launch_bounds__(block_threads)
    backward_kernel(const __grid_constant__ Arguments args) {
  constexpr backward_policy P = Arguments::policy;
  constexpr int score_stride = row_stride<P.tile.kv>;
  using by_qk = rows_tile<row_stride<P.qk_dim>>;
  using by_v = rows_tile<row_stride<P.v_dim>>;
  extern __shared__ __align__(16) float memory[];
  float* const v = memory + P.v_at();
  float* const q = memory + P.q_at();
  float* const o = memory + P.o_at();
  float* const p = memory + P.p_at();
  float* const ds = memory + P.ds_at();

  __shared__ int unit;
  if (threadIdx.x == 0) unit = atomicAdd(args.next_unit, 1);
  __syncthreads();
  const int kv_tile = unit % args.kv_tiles;
  const int kv_head = unit / args.kv_tiles % args.kv_heads;
  const int b = unit / args.kv_tiles / args.kv_heads;
  const int first_kv = kv_tile * P.tile.kv;
  fill<P.tile.kv, P.qk_dim>(memory, args.k, b, kv_head, first_kv, args.k_vectors);
  fill<P.tile.kv, P.v_dim>(v, args.v, b, kv_head, first_kv, args.v_vectors);

  sums<P.math, P.tile.kv, P.qk_dim> dk;
  sums<P.math, P.tile.kv, P.v_dim> dv;
  for (int h = kv_head * args.group; h < (kv_head + 1) * args.group; ++h) {
    tile_walk<direction::down> walk{args.map.columns,
                                    args.map.column(b, h, first_kv / args.map.tile.kv),
                                    args.q_tiles_per_map_tile, args.q_tiles};
    for (; !walk.done(); walk.advance()) {
      const int first_q = walk.tile() * P.tile.q;
      const bool masked = walk.partial() || first_kv + P.tile.kv > args.kv_len;
      const index_t tile = (index_t{b} * args.heads + h) * args.q_tiles + walk.tile();
      fill<P.tile.q, P.qk_dim>(q, args.q, b, h, first_q, args.q_vectors);
      fill<P.tile.q, P.v_dim>(o, args.dout, b, h, first_q, args.dout_vectors);
      ptx::commit_copies();
      ptx::wait_copies<0>();
      __syncthreads();

      sums<P.math, P.tile.q, P.tile.kv> scores, weight_gradients;
      scores.template add<P.qk_dim>(by_qk{q}, columns_tile<row_stride<P.qk_dim>>{memory});
      weight_gradients.template add<P.v_dim>(by_v{o}, columns_tile<row_stride<P.v_dim>>{v});
      weight_gradients.visit([&](int i, int j, float dp) { ds[i * score_stride + j] = dp; });
      // The same thread wrote dp where it now reads it: both sums are dealt out alike.
      scores.visit([&](int i, int j, float product) {
        const int query = min(first_q + i, args.q_len - 1);
        const int kv = first_kv + j;
        const index_t row = tile * P.tile.q + i;
        const bool visible =
            !masked || (kv < args.kv_len && static_cast<bool>(args.mask(b, h, query, kv)));
        dual<float> s{product * args.scale, 1.0f};
        if constexpr (Arguments::has_score) {
          if (visible) s = args.score(s, b, h, query, kv);
        }
        const float weight = visible ? exp2f(s.value * log2_e - args.lse2[row]) : 0.0f;
        const float dscore = weight * (ds[i * score_stride + j] - args.delta[row]);
        if (weight > 0) learn(args.score, dscore, product * args.scale, b, h, query, kv);
        p[i * score_stride + j] = weight;
        ds[i * score_stride + j] = weight > 0 ? dscore * s.derivative : 0.0f;
      });
      if (args.ordered && threadIdx.x < 32) {
        dq_turn turn;
        turn.begin(args.map, b, h, first_q / args.map.tile.q);
        turn.look(args.map, args.dq_done + tile);
        turn.wait(args.map, args.dq_done + tile, kv_tile, args.kv_tiles_per_map_tile);
      }
      __syncthreads();

      sums<P.math, P.tile.q, P.qk_dim> dq;
      dq.template add<P.tile.kv>(rows_tile<score_stride>{ds}, by_qk{memory});
      dq.visit([&](int i, int column, float sum) {
        if (first_q + i < args.q_len && column < args.dq.extents[3]) {
          atomicAdd(&args.dq(b, h, first_q + i, column), sum * args.scale);
        }
      });
      dv.template add<P.tile.q>(columns_tile<score_stride>{p}, by_v{o});
      dk.template add<P.tile.q>(columns_tile<score_stride>{ds}, by_qk{q});
      __syncthreads();
      if (args.ordered && threadIdx.x == 0) dq_turn::pass_on(args.dq_done + tile, kv_tile);
    }
  }
  ptx::wait_copies<0>();
  const auto store = [&](const row_store& to, int i, int column, float value) {
    if (first_kv + i >= args.kv_len || column >= to.dim) return;
    float* at = static_cast<float*>(to.data) + b * to.strides[0] + kv_head * to.strides[1] +
                (first_kv + i) * to.strides[2] + column;
    *at = to.accumulate ? *at + value : value;
  };
  dk.visit([&](int i, int column, float sum) { store(args.dk, i, column, sum * args.scale); });
  dv.visit([&](int i, int column, float sum) { store(args.dv, i, column, sum); });
}

/// Zeroes a tensor of any strides.
template <int Threads>
__global__ void __launch_bounds__(Threads) clear_kernel(const __grid_constant__ view<float, 4> to) {
  const index_t rows = to.extents[0] * to.extents[1] * to.extents[2];
  for (index_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const index_t head = row / to.extents[2];
    float* const at = &to(head / to.extents[1], head % to.extents[1], row % to.extents[2], 0);
    for (index_t d = threadIdx.x; d < to.extents[3]; d += blockDim.x) at[d] = 0;
  }
}

} // namespace maskring::cuda::detail::fp32
