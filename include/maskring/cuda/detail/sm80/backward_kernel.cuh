// SPDX-License-Identifier: Apache-2.0
// The portable backward kernel: one pass that makes dk and dv in registers and adds up dq in memory.
//
// A block owns a tile of keys of one key head. It walks the query tiles that its column of the block
// map names, for every query head of the group, from the last tile to the first; so dk and dv need
// no other block. Half of its warps make the weights and dv, the other half their gradients and dk:
// each of the two sums then lies in large pieces, which takes fewer reads of shared memory, and one
// half multiplies while the other exponentiates. dq, which both make, is the sum of what several
// blocks find. They add in the order of their keys: whoever is not yet next waits. Blocks begin in
// that order and all walk the same way, so each follows the block before it at a distance, and
// rarely waits once that is found.
#pragma once

#include <maskring/core/problem.hpp>
#include <maskring/cuda/detail/dq_order.cuh>
#include <maskring/cuda/detail/learn.cuh>
#include <maskring/cuda/detail/ptx/named_barrier.cuh>
#include <maskring/cuda/detail/ptx/red.cuh>
#include <maskring/cuda/detail/sm80/backward_policy.cuh>
#include <maskring/cuda/detail/sm80/product.cuh>
#include <maskring/cuda/detail/sm80/tile_blocks.cuh>
#include <maskring/cuda/detail/softmax.cuh>
#include <maskring/cuda/detail/store.cuh>
#include <maskring/cuda/detail/tile_walk.cuh>

#include <cstddef>
#include <iterator>

namespace maskring::cuda::detail::sm80 {

template <class Arguments>
class backward_block {
  static constexpr backward_policy P = Arguments::policy;
  using T = typename Arguments::input_type;
  static constexpr int threads = P.threads();
  static constexpr int group_threads = threads / 2;

  using q_layout = tile_layout<P.tile.q, P.dim>; // of output gradients too
  using k_layout = tile_layout<P.tile.kv, P.dim>; // of values too
  using score_layout = tile_layout<P.tile.q, P.tile.kv>;
  using blocks = tile_blocks<P.tile.q / 16, P.tile.kv / 16>;

  // What a warp owns of each product, in blocks of 16 × 16, and how many warps share its sides.
  static constexpr int s_q = P.s_warps, s_kv = P.group_warps() / s_q;
  static constexpr int k_kv = P.k_warps, k_d = P.group_warps() / k_kv;
  static constexpr int q_q = P.q_warps, q_d = P.warps / q_q;
  static constexpr int s_rows = P.tile.q / s_q / 16, s_columns = P.tile.kv / s_kv / 16;
  static constexpr int k_rows = P.tile.kv / k_kv / 16, k_columns = P.dim / k_d / 16;
  static constexpr int q_rows = P.tile.q / q_q / 16, q_columns = P.dim / q_d / 16;
  static_assert(s_rows * s_columns * k_rows * k_columns * q_rows * q_columns > 0);

  using scores = float[s_rows][8 * s_columns];

  // With a score modifier one group makes weights and gradients. It and the other then need the same
  // shared memory, and with one stage both groups' copies do: they keep step.
  static constexpr bool in_step = Arguments::has_score || P.stages == 1;

  enum barrier { weights_stored = 1, weights_ready, gradients_stored, gradients_ready, turn_taken,
                 queries_ready };

public:
  __device__ backward_block(const Arguments& args, std::uint32_t shared, int unit)
      : args_{args}, shared_{shared} {
    // Blocks that take turns at one head follow each other at a distance. Several heads at a time
    // let enough of them begin for all multiprocessors.
    constexpr int heads_at_a_time = 32;
    const int first = unit / (heads_at_a_time * args.kv_tiles) * heads_at_a_time;
    const int count = min(heads_at_a_time, args.layers - first);
    const int within = unit - first * args.kv_tiles;
    kv_tile_ = within / count;
    const int layer = first + within % count;
    kv_head_ = layer % args.kv_heads;
    batch_ = layer / args.kv_heads;
  }

  __device__ void run() {
    const int first_key = kv_tile_ * P.tile.kv;
    fill_tile<k_layout, threads>(shared_ + P.k_at(),
                                 row_source::of(args_.k, batch_, kv_head_, args_.k_vectors),
                                 first_key);
    fill_tile<k_layout, threads>(shared_ + P.v_at(),
                                 row_source::of(args_.v, batch_, kv_head_, args_.v_vectors),
                                 first_key);
    const bool last_keys = first_key + P.tile.kv > args_.kv_len;
    for (int member = 0; member < args_.group; ++member) {
      head_ = kv_head_ * args_.group + member;
      const index_t column =
          args_.map.column(batch_, head_, kv_tile_ * P.tile.kv / args_.map.tile.kv);
      tile_walk<direction::down> walk{args_.map.columns, column, args_.q_tiles_per_map_tile,
                                      args_.q_tiles};
      if (!walk.done()) fetch(walk.tile(), stage_);
      ptx::commit_copies();
      ptx::wait_copies<0>();
      __syncthreads();
      while (!walk.done()) {
        const int tile = walk.tile();
        const bool masked = walk.partial() || last_keys ||
                            (Arguments::has_score && (tile + 1) * P.tile.q > args_.q_len);
        walk.advance();
        if (masked) {
          step<true>(tile, walk);
        } else {
          step<false>(tile, walk);
        }
      }
      __syncthreads();
      pass_on();
    }
    finish();
  }

private:
  /// Starts copying what the group alone reads to the end of a step: the weights' group output
  /// gradients and lse, the gradients' group queries and delta.
  __device__ void fetch(int q_tile, int stage) const {
    const int first = q_tile * P.tile.q;
    if (of_weights()) {
      fill_tile<q_layout, group_threads>(
          shared_ + o_at(stage), row_source::of(args_.dout, batch_, head_, args_.dout_vectors), first);
    } else {
      fill_tile<q_layout, group_threads>(
          shared_ + q_at(stage), row_source::of(args_.q, batch_, head_, args_.q_vectors), first);
    }
    const int row = static_cast<int>(threadIdx.x) % group_threads;
    if (row < P.tile.q) {
      ptx::copy_async_word(shared_ + rows_at(stage) + 4 * row,
                           (of_weights() ? args_.lse2 : args_.delta) + row_of(q_tile) * P.tile.q + row);
    }
  }

  template <bool Masked>
  __device__ void step(int q_tile, const tile_walk<direction::down>& next) {
    const index_t rows = row_of(q_tile);
    const bool keeps_turn = args_.ordered && warp() == 0;
    dq_turn turn;
    if (keeps_turn) turn.begin(args_.map, batch_, head_, q_tile * P.tile.q / args_.map.tile.q);
    const auto tile = look_at<Masked>(q_tile);
    const kept keep = look_at_entries<Masked>(tile, q_tile);

    scores s = {};
    const block_reader<q_layout, false> left{shared_ + (of_weights() ? q_at(stage_) : o_at(stage_)),
                                             score_row()};
    const block_reader<k_layout, true> right{shared_ + (of_weights() ? P.k_at() : P.v_at()),
                                             score_column()};
    add_product_transposed<T, s_q, s_kv>(s, left, right,
                                         [&](int n) { return column_seen(tile.seen, n); });
    if (keeps_turn) turn.look(args_.map, args_.dq_done + rows);
    if (of_weights()) {
      if constexpr (Arguments::has_score) {
        hand_over(s);
      } else {
        weigh<Masked>(s, tile.seen, keep);
      }
      ptx::barrier_sync(weights_stored, group_threads);
      ptx::barrier_arrive(weights_ready, threads);
    } else {
      ptx::barrier_sync(weights_ready, threads);
      pass_on();  // only now: what was added has long arrived, the fence is short
    }
    if constexpr (P.stages == 2) {
      if (!next.done()) fetch(next.tile(), 1 - stage_);
      ptx::commit_copies();
    }
    if (!of_weights()) {
      differentiate<Masked>(s, tile.seen, keep, q_tile);
      ptx::barrier_sync(gradients_stored, group_threads);
      if constexpr (Arguments::has_score || !in_step) ptx::barrier_arrive(gradients_ready, threads);
    } else if constexpr (Arguments::has_score) {
      ptx::barrier_sync(gradients_ready, threads);
    }

    add_to_keys(tile.seen);
    if (keeps_turn) turn.wait(args_.map, args_.dq_done + rows, kv_tile_, args_.kv_tiles_per_map_tile);
    if constexpr (in_step) {
      __syncthreads();
      if constexpr (P.stages == 1) {
        if (!next.done()) fetch(next.tile(), stage_);
        ptx::commit_copies();
      }
    } else {
      ptx::wait_copies<0>();
      if (of_weights()) {
        ptx::barrier_sync(gradients_ready, threads);
        ptx::barrier_arrive(turn_taken, threads);
      } else {
        ptx::barrier_arrive(queries_ready, threads);
        ptx::barrier_sync(turn_taken, threads);  // the next output gradients are there, too
      }
    }
    add_to_queries(rows, tile.seen);
    if (args_.ordered) pending_ = args_.dq_done + rows;
    if constexpr (in_step) {
      ptx::wait_copies<0>();
      __syncthreads();
    } else if (of_weights()) {
      ptx::barrier_sync(queries_ready, threads);
    }
    if constexpr (P.stages == 2) stage_ = 1 - stage_;
  }

  // ---- the blocks of a tile

  template <bool Masked>
  __device__ auto look_at(int q_tile) const {
    if constexpr (Masked) {
      return blocks::of(args_, batch_, head_, q_tile * P.tile.q, kv_tile_ * P.tile.kv);
    } else {
      struct {
        all_blocks seen, some;
      } all;
      return all;
    }
  }

  template <class Set>
  static __device__ bool column_seen(const Set& seen, int n) {
    const auto own = seen.from(score_row() / 16, score_column() / 16);
    bool any = false;
#pragma unroll
    for (int m = 0; m < s_rows; ++m) any |= own.has(m * s_q, n * s_kv);
    return any;
  }

  /// The entries that the mask keeps of the warp's scores: bits, 8 to a block.
  struct kept {
    std::uint32_t word[(s_rows * s_columns + 3) / 4] = {};

    __device__ std::uint32_t block(int m, int n) const {
      const int at = m * s_columns + n;
      return word[at / 4] >> at % 4 * 8;
    }
  };

  template <bool Masked, class Tile>
  __device__ kept look_at_entries(const Tile& tile, int q_tile) const {
    kept out;
    if constexpr (Masked) {
      if (of_weights() == Arguments::has_score) return out;
      const auto some = tile.some.from(score_row() / 16, score_column() / 16);
      const score_origin at = origin(q_tile);
#pragma unroll 1
      for (int block = 0; block < s_rows * s_columns; ++block) {
        const int m = block / s_columns * s_q, n = block % s_columns * s_kv;
        std::uint32_t bits = 0xff;
        if (some.has(m, n)) {
          bits = kept_entries(args_, {at.batch, at.head, at.q + 16 * m, at.kv + 16 * n});
        }
#pragma unroll
        for (int w = 0; w < static_cast<int>(std::size(out.word)); ++w) {
          out.word[w] |= (block / 4 == w ? bits : 0) << block % 4 * 8;
        }
      }
    }
    return out;
  }

  // ---- weights and their gradients

  /// Scores become weights.
  template <bool Masked, class Set>
  __device__ void weigh(scores& s, const Set& of_tile, const kept& keep) const {
    const block_writer<score_layout> weights{shared_ + P.p_at(), score_row(), score_column() / 8};
    const auto seen = of_tile.from(score_row() / 16, score_column() / 16);
    const float unit = args_.scale * log2_e;
#pragma unroll
    for (int m = 0; m < s_rows; ++m) {
      float lse[2];
      load_rows(lse, m);
#pragma unroll
      for (int n = 0; n < s_columns; ++n) {
        if (!seen.has(m * s_q, n * s_kv)) continue;
        float* const p = s[m] + 8 * n;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          p[i] = ptx::exp2(p[i] * unit - lse[fragment_layout::row(i)]);
          if (Masked && (keep.block(m, n) >> i & 1) == 0) p[i] = 0;
        }
        store(weights, p, m, n);
      }
    }
  }

  /// Products become gradients of scores, by the weights that the other group left.
  template <bool Masked, class Set>
  __device__ void differentiate(scores& ds, const Set& of_tile, const kept& keep, int q_tile) const {
    const block_reader<score_layout, false> weights{shared_ + P.p_at(), score_row(),
                                                    score_column() / 8};
    const block_writer<score_layout> gradients{shared_ + P.ds_at(), score_row(), score_column() / 8};
    const auto seen = of_tile.from(score_row() / 16, score_column() / 16);
#pragma unroll
    for (int m = 0; m < s_rows; ++m) {
      float delta[2];
      load_rows(delta, m);
#pragma unroll
      for (int n = 0; n < s_columns; ++n) {
        if (!seen.has(m * s_q, n * s_kv)) continue;
        float(&d)[8] = reinterpret_cast<float(&)[8]>(ds[m][8 * n]);
        if constexpr (Arguments::has_score) {
          differentiate_scores<Masked>(d, delta, origin(q_tile), m, n, keep.block(m, n));
        } else {
          std::uint32_t word[4];
          weights.load(word, m * s_q, n * s_kv);
#pragma unroll
          for (int w = 0; w < 4; ++w) {
            float p[2];
            ptx::unpack<T>(word[w], p[0], p[1]);
            d[2 * w] = p[0] * (d[2 * w] - delta[w % 2]);
            d[2 * w + 1] = p[1] * (d[2 * w + 1] - delta[w % 2]);
          }
        }
        store(gradients, d, m, n);
      }
    }
  }

  /// With a score modifier: leaves the products in both tiles, rounded to 16 bits and what that took
  /// off, for the group that differentiates.
  __device__ void hand_over(const scores& s) const {
    const block_writer<score_layout> upper{shared_ + P.p_at(), score_row(), score_column() / 8};
    const block_writer<score_layout> lower{shared_ + P.ds_at(), score_row(), score_column() / 8};
#pragma unroll
    for (int m = 0; m < s_rows; ++m) {
#pragma unroll
      for (int n = 0; n < s_columns; ++n) {
        std::uint32_t high[4], low[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const float* const x = s[m] + 8 * n + 2 * w;
          float rounded[2];
          high[w] = ptx::pack<bfloat16>(x[0], x[1]);
          ptx::unpack<bfloat16>(high[w], rounded[0], rounded[1]);
          low[w] = ptx::pack<bfloat16>(x[0] - rounded[0], x[1] - rounded[1]);
        }
        upper.store(high, m * s_q, n * s_kv);
        lower.store(low, m * s_q, n * s_kv);
      }
    }
  }

  /// Takes up what was handed over of a block, leaves the weights in its place, and makes d (products
  /// of output gradients and values) the gradients of the raw scores.
  template <bool Masked>
  __device__ void differentiate_scores(float (&d)[8], const float (&delta)[2], score_origin at, int m,
                                       int n, std::uint32_t keep) const {
    const int column = score_column() / 8;
    const block_reader<score_layout, false> upper{shared_ + P.p_at(), score_row(), column};
    const block_reader<score_layout, false> lower{shared_ + P.ds_at(), score_row(), column};
    const block_writer<score_layout> weights{shared_ + P.p_at(), score_row(), column};
    const auto score = score_at(args_.score, at.batch, at.head);
    float lse[2];
    load_rows(lse, m, rows_at(stage_) - 4 * P.tile.q);
    std::uint32_t high[4], low[4];
    upper.load(high, m * s_q, n * s_kv);
    lower.load(low, m * s_q, n * s_kv);
    float p[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float x[2], y[2];
      ptx::unpack<bfloat16>(high[i / 2], x[0], x[1]);
      ptx::unpack<bfloat16>(low[i / 2], y[0], y[1]);
      const float product = (x[i % 2] + y[i % 2]) * args_.scale;
      int q = at.q + 16 * m * s_q + 8 * fragment_layout::row(i);
      int kv = at.kv + 16 * n * s_kv + fragment_layout::column(i);
      if constexpr (Masked) {  // tables must not be read past their ends
        q = min(q, args_.q_len - 1);
        kv = min(kv, args_.kv_len - 1);
      }
      const int r = fragment_layout::row(i);
      const dual<score_number<T>> s =
          score(dual<score_number<T>>{product, 1.0f}, at.batch, at.head, q, kv);
      p[i] = ptx::exp2(static_cast<float>(s.value) * log2_e - lse[r]);
      if (Masked && (keep >> i & 1) == 0) p[i] = 0;
      // A weight of 0 passes no gradient, also where the modifier gave −inf and no derivative.
      const float dscore = p[i] * (d[i] - delta[r]);
      if (p[i] > 0) learn(args_.score, dscore, product, at.batch, at.head, q, kv);
      d[i] = p[i] > 0 ? static_cast<float>(dscore * s.derivative) : 0.0f;
    }
    store(weights, p, m, n);
  }

  /// Writes a block of the warp's scores, rounded to T.
  __device__ static void store(const block_writer<score_layout>& to, const float* s, int m, int n) {
    std::uint32_t word[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) word[w] = ptx::pack<T>(s[2 * w], s[2 * w + 1]);
    to.store(word, m * s_q, n * s_kv);
  }

  /// The group's values of this lane's two query rows in row m of blocks.
  __device__ void load_rows(float (&value)[2], int m) const { load_rows(value, m, rows_at(stage_)); }
  __device__ void load_rows(float (&value)[2], int m, int at) const {
    const int row = score_row() + 16 * m * s_q + fragment_layout::first_row(lane());
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value[r]) : "r"(shared_ + at + 4 * (row + 8 * r)));
    }
  }

  // ---- sums

  /// dv += weightsᵀ · dout, or dk += gradientsᵀ · q.
  template <class Set>
  __device__ void add_to_keys(const Set& seen) {
    const block_reader<score_layout, true> left{shared_ + (of_weights() ? P.p_at() : P.ds_at()), 0,
                                                key_row() / 8};
    const block_reader<q_layout, false> right{shared_ + (of_weights() ? o_at(stage_) : q_at(stage_)),
                                              0, key_column() / 8};
    const auto own = seen.from(0, key_row() / 16);
    add_product<T, P.tile.q / 16>(
        sums_,
        [&](std::uint32_t(&word)[4], int inner, int m) { left.load_transposed(word, inner, m * k_kv); },
        right, [&](int inner, int m) { return own.has(inner, m * k_kv); });
  }

  /// Adds gradients · k to the query tile's sums in memory, which lie as the threads hold them.
  template <class Set>
  __device__ void add_to_queries(index_t rows, const Set& seen) const {
    float dq[q_rows][8 * q_columns] = {};
    const int row = warp() % q_q * 16;
    const block_reader<score_layout, false> left{shared_ + P.ds_at(), row};
    const block_reader<k_layout, false> right{shared_ + P.k_at(), 0, warp() / q_q * q_columns * 2};
    const auto own = seen.from(row / 16, 0);
    add_product<T, P.tile.kv / 16>(
        dq, [&](std::uint32_t(&word)[4], int inner, int m) { left.load(word, m * q_q, inner); }, right,
        [&](int inner, int m) { return own.has(m * q_q, inner); });
    float* sums = args_.dq_sums + rows * (P.tile.q * P.dim) + 4 * threadIdx.x;
#pragma unroll
    for (int m = 0; m < q_rows; ++m) {
#pragma unroll
      for (int n = 0; n < 2 * q_columns; ++n) {
        ptx::add_to_global(sums + (m * 2 * q_columns + n) * 4 * threads, dq[m] + 4 * n);
      }
    }
  }

  /// Lets the next block add to the query tile that this block added to in its last step. After a
  /// barrier that followed.
  __device__ void pass_on() {
    if (pending_ != nullptr && threadIdx.x == threads - 1) dq_turn::pass_on(pending_, kv_tile_);
    pending_ = nullptr;
  }

  __device__ void finish() const {
    const row_store to = of_weights() ? args_.dv : args_.dk;
    const float scale = of_weights() ? 1.0f : args_.scale;
    const int row = kv_tile_ * P.tile.kv + key_row() + fragment_layout::first_row(lane());
#pragma unroll
    for (int m = 0; m < k_rows; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int n = 0; n < k_columns; n += 2) {
          float value[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            value[i] = sums_[m][8 * n + 4 * (i / 2) + 2 * r + i % 2] * scale;
          }
          store_quad<T>(to, batch_, kv_head_, row + 16 * m * k_kv + 8 * r, key_column() + 16 * n, value);
        }
      }
    }
  }

  // ---- who and where

  // The policy's own functions with a run-time stage would need the policy in device memory.
  static __device__ int q_at(int stage) {
    constexpr int first = P.q_at(0), size = P.q_at(1) - first;
    return first + stage * size;
  }
  static __device__ int o_at(int stage) {
    constexpr int first = P.o_at(0), size = P.o_at(1) - first;
    return first + stage * size;
  }
  /// The group's values of the query rows.
  static __device__ int rows_at(int stage) {
    constexpr int first = P.rows_at(0), size = P.rows_at(1) - first;
    return first + stage * size + (of_weights() ? 0 : 4 * P.tile.q);
  }

  /// Where the query tile's rows begin in arrays [batch, head, q_tiles], in tiles.
  __device__ index_t row_of(int q_tile) const {
    return (index_t{batch_} * args_.heads + head_) * args_.q_tiles + q_tile;
  }
  static __device__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ bool of_weights() { return warp() < P.group_warps(); }
  static __device__ int group_warp() { return warp() % P.group_warps(); }
  // The first block of the warp's share.
  static __device__ int score_row() { return group_warp() % s_q * 16; }
  static __device__ int score_column() { return group_warp() / s_q * 16; }
  static __device__ int key_row() { return group_warp() % k_kv * 16; }
  static __device__ int key_column() { return group_warp() / k_kv * k_columns * 16; }

  /// Of the first block of the warp's scores.
  __device__ score_origin origin(int q_tile) const {
    return {batch_, head_, q_tile * P.tile.q + score_row() + fragment_layout::first_row(lane()),
            kv_tile_ * P.tile.kv + score_column() + fragment_layout::first_column(lane())};
  }

  const Arguments& args_;
  std::uint32_t shared_;
  int kv_tile_, kv_head_, batch_;
  int head_ = 0;
  int stage_ = 0;
  int* pending_ = nullptr;
  float sums_[k_rows][8 * k_columns] = {};  ///< of dv or dk
};

template <class Arguments>
__global__ void __launch_bounds__(Arguments::policy.threads(), 1)
    backward_kernel(const __grid_constant__ Arguments args) {
  extern __shared__ __align__(128) std::byte memory[];
  // Blocks take their work in the order in which they begin, so that nobody waits for a block that
  // has not begun.
  __shared__ int unit;
  if (threadIdx.x == 0) unit = atomicAdd(args.next_unit, 1);
  __syncthreads();
  backward_block<Arguments>{args, static_cast<std::uint32_t>(__cvta_generic_to_shared(memory)),
                            unit}
      .run();
}

}  // namespace maskring::cuda::detail::sm80
