// SPDX-License-Identifier: Apache-2.0
// The portable backward kernel: one pass that makes dk and dv in registers and adds up dq in
// memory.
//
// A block owns a tile of keys of one key head. It walks the query tiles that its column of the
// block map names, for every query head of the group, from the last tile to the first; so dk and dv
// need no other block. Half of its warps make the weights and dv, the other half their gradients
// and dk: each of the two sums then lies in large pieces, which takes fewer reads of shared memory,
// and one half multiplies while the other exponentiates. dq, which both make, is the sum of what
// several blocks find. They add in the order of their keys: whoever is not yet next waits. Blocks
// begin in that order and all walk the same way, so each follows the block before it at a distance,
// and rarely waits once that is found.
#pragma once

#include <maskring/cuda/detail/backward_unit.cuh>
#include <maskring/cuda/detail/dq_order.cuh>
#include <maskring/cuda/detail/ptx/named_barrier.cuh>
#include <maskring/cuda/detail/ptx/red.cuh>
#include <maskring/cuda/detail/sm80/backward_scores.cuh>
#include <maskring/cuda/detail/sm80/product.cuh>
#include <maskring/cuda/detail/store.cuh>
#include <maskring/cuda/detail/tile_walk.cuh>

#include <cstddef>

namespace maskring::cuda::detail::sm80 {

template <class Arguments>
class backward_block {
  static constexpr backward_policy P = Arguments::policy;
  using T = typename Arguments::input_type;
  using at = backward_warps<P>;
  using q_layout = typename at::q_layout;
  using k_layout = typename at::k_layout;
  using score_layout = typename at::score_layout;
  using blocks = tile_blocks<P.tile.q / 16, P.tile.kv / 16>;
  using score_work = backward_scores<Arguments>;
  static constexpr int threads = at::threads;
  static constexpr int group_threads = at::group_threads;

  /// Whether to tell halves of the keys apart: borders of masks seldom leave one of them without
  /// work in tiles that are not wider than high.
  static constexpr bool has_halves =
      P.tile.kv > P.tile.q &&
      !maskring::detail::surely_keeps<decltype(Arguments::mask),
                                      tile{.q = {0, 1 << 20}, .kv = {0, 1 << 20}}>;
  static_assert(!has_halves || (at::s_columns % 2 == 0 && at::k_rows % 2 == 0));

  // Where both groups work at the same things, or wait for each other's copies, they keep step.
  static constexpr bool in_step = Arguments::has_score || P.stages == 1;

  enum barrier {
    weights_stored = 1,
    weights_ready,
    gradients_stored,
    gradients_ready,
    turn_taken,
    queries_ready,
    added
  };

public:
  __device__ backward_block(const Arguments& args, std::uint32_t shared, int unit)
      : args_{args}, shared_{shared} {
    const auto own = backward_unit::of(unit, args.kv_tiles, args.layers, args.kv_heads);
    kv_tile_ = own.kv_tile;
    kv_head_ = own.kv_head;
    batch_ = own.batch;
  }

  __device__ void run() {
    const int key = kv_tile_ * P.tile.kv;
    fill_tile<k_layout, threads>(shared_ + P.k_at(),
                                 row_source::of(args_.k, batch_, kv_head_, args_.k_vectors), key);
    fill_tile<k_layout, threads>(shared_ + P.v_at(),
                                 row_source::of(args_.v, batch_, kv_head_, args_.v_vectors), key);
    for (int member = 0; member < args_.group; ++member) {
      head_ = kv_head_ * args_.group + member;
      add_head();
    }
    finish();
  }

private:
  /// Walks the column of a query head.
  __device__ void add_head() {
    const index_t column =
        args_.map.column(batch_, head_, kv_tile_ * P.tile.kv / args_.map.tile.kv);
    tile_walk<direction::down> walk{args_.map.columns, column, args_.q_tiles_per_map_tile,
                                    args_.q_tiles};
    if (!walk.done()) fetch(walk.tile(), stage_);
    ptx::commit_copies();
    ptx::wait_copies<0>();
    __syncthreads();
    const bool last_keys = (kv_tile_ + 1) * P.tile.kv > args_.kv_len;
    while (!walk.done()) {
      const int tile = walk.tile();
      const bool masked = walk.partial() || last_keys ||
                          (Arguments::has_score && (tile + 1) * P.tile.q > args_.q_len);
      walk.advance();
      if (!masked) {
        step<key_part::all>(tile, walk, typename score_work::all_entries{});
        continue;
      }
      const mask_question question{args_};
      const auto seen = blocks::of(question, batch_, head_, tile * P.tile.q, kv_tile_ * P.tile.kv);
      const auto kept = work_on(tile).look_at_entries(question, seen);
      if constexpr (has_halves) {
        if (!seen.sees(key_part::upper)) {
          step<key_part::lower>(tile, walk, kept);
          continue;
        }
        if (!seen.sees(key_part::lower)) {
          step<key_part::upper>(tile, walk, kept);
          continue;
        }
      }
      step<key_part::all>(tile, walk, kept);
    }
    __syncthreads();
    pass_on();
  }

  /// Starts copying what the group alone reads to the end of a step: the weights' group output
  /// gradients and lse, the gradients' group queries and delta.
  __device__ void fetch(int q_tile, int stage) const {
    const int first = q_tile * P.tile.q;
    if (me_.of_weights()) {
      fill_tile<q_layout, group_threads>(
          shared_ + at::o_at(stage), row_source::of(args_.dout, batch_, head_, args_.dout_vectors),
          first);
    } else {
      fill_tile<q_layout, group_threads>(shared_ + at::q_at(stage),
                                         row_source::of(args_.q, batch_, head_, args_.q_vectors),
                                         first);
    }
    const int row = static_cast<int>(threadIdx.x) % group_threads;
    if (row < P.tile.q) {
      ptx::copy_async_word(
          shared_ + (me_.of_weights() ? at::lse_at(stage) : at::delta_at(stage)) + 4 * row,
          (me_.of_weights() ? args_.lse2 : args_.delta) + row_of(q_tile) * P.tile.q + row);
    }
  }

  /// Takes in a query tile; `kept` is what the mask leaves of it, nothing outside of `Part`.
  template <key_part Part, class Kept>
  __device__ void step(int q_tile, const tile_walk<direction::down>& next, const Kept& kept) {
    const score_work work = work_on(q_tile);
    typename at::scores s = {};
    const block_reader<q_layout, false> left{
        shared_ + (me_.of_weights() ? at::q_at(stage_) : at::o_at(stage_)), me_.score_row()};
    const block_reader<k_layout, true> right{shared_ + (me_.of_weights() ? P.k_at() : P.v_at()),
                                             me_.score_column()};
    add_product_transposed<T, blocks_of(Part, at::s_columns), at::s_q, at::s_kv>(s, left, right);

    const bool keeps_turn = args_.ordered && me_.warp == 0;
    dq_turn turn;
    if (keeps_turn) turn.begin(args_.map, batch_, head_, q_tile * P.tile.q / args_.map.tile.q);
    const auto fetch_next = [&] {
      if (!next.done()) fetch(next.tile(), P.stages == 2 ? 1 - stage_ : stage_);
      ptx::commit_copies();
    };
    if constexpr (Arguments::has_score) {
      work.template hand_over<Part>(s);
      pass_on();
      __syncthreads();
      if constexpr (P.stages == 2) fetch_next();
      work.template finish<Part>(s, kept);
      __syncthreads();
    } else if (me_.of_weights()) {
      work.template weigh<Part>(s, kept);
      ptx::barrier_sync(weights_stored, group_threads);
      ptx::barrier_arrive(weights_ready, threads);
      if constexpr (in_step) count_barrier();
      if constexpr (P.stages == 2) fetch_next();
    } else {
      if (!in_step && pending_ >= 0) ptx::barrier_sync(added, threads);
      pass_on(); // only now: what was added has long arrived, the fence is short
      ptx::barrier_sync(weights_ready, threads);
      if constexpr (P.stages == 2) fetch_next();
      work.template differentiate<Part>(s);
      ptx::barrier_sync(gradients_stored, group_threads);
      if constexpr (!in_step) ptx::barrier_arrive(gradients_ready, threads);
    }

    int* const counter = args_.dq_done + row_of(q_tile);
    if (keeps_turn) turn.look(args_.map, counter);
    add_to_keys<Part>();
    if (keeps_turn) turn.wait(args_.map, counter, kv_tile_, args_.kv_tiles_per_map_tile);
    if constexpr (in_step) {
      __syncthreads();
      if constexpr (P.stages == 1) fetch_next();
    } else {
      ptx::wait_copies<0>();
      if (me_.of_weights()) {
        ptx::barrier_sync(gradients_ready, threads);
        ptx::barrier_arrive(turn_taken, threads);
      } else {
        ptx::barrier_arrive(queries_ready, threads);
        ptx::barrier_sync(turn_taken, threads); // the next output gradients are there, too
      }
    }
    add_to_queries<Part>(q_tile);
    if (args_.ordered) pending_ = q_tile;
    if constexpr (in_step) {
      ptx::wait_copies<0>();
      __syncthreads();
    } else if (me_.of_weights()) {
      ptx::barrier_sync(queries_ready, threads);
      if (args_.ordered && !next.done()) {
        ptx::barrier_arrive(added, threads);
        count_barrier();
      }
    }
    if constexpr (P.stages == 2) stage_ = 1 - stage_;
  }

  /// The warp's share of a query tile's scores.
  __device__ score_work work_on(int q_tile) const {
    const int lane = at::lane();
    return {args_,
            me_,
            shared_,
            stage_,
            {batch_, head_, q_tile * P.tile.q + me_.score_row() + fragment_layout::first_row(lane),
             kv_tile_ * P.tile.kv + me_.score_column() + fragment_layout::first_column(lane)}};
  }

  /// A barrier that the weights' warps, who have just met, do not need: the other group has waited
  /// at one more. racecheck (compute-sanitizer of CUDA 13.0) orders the accesses of two warps by
  /// how many barriers each has waited at, whichever these were.
  __device__ void count_barrier() const { ptx::barrier_sync(weights_stored, group_threads); }

  /// dv += weightsᵀ · dout, or dk += gradientsᵀ · q.
  template <key_part Part>
  __device__ void add_to_keys() {
    const block_reader<score_layout, true> left{shared_ + (me_.of_weights() ? P.p_at() : P.ds_at()),
                                                0, me_.key_row() / 8};
    const block_reader<q_layout, false> right{
        shared_ + (me_.of_weights() ? at::o_at(stage_) : at::q_at(stage_)), 0,
        me_.key_column() / 8};
    add_product<T, block_range{0, P.tile.q / 16}, blocks_of(Part, at::k_rows)>(
        sums_,
        [&](std::uint32_t(&word)[4], int inner, int m) {
          left.load_transposed(word, inner, m * at::k_kv);
        },
        right);
  }

  /// Adds gradients · k to the query tile's sums in memory, which lie as the threads hold them.
  template <key_part Part>
  __device__ void add_to_queries(int q_tile) const {
    float dq[at::q_rows][8 * at::q_columns] = {};
    const int row = me_.query_row();
    const block_reader<score_layout, false> left{shared_ + P.ds_at(), row};
    const block_reader<k_layout, false> right{shared_ + P.k_at(), 0, me_.query_column() / 8};
    add_product<T, blocks_of(Part, P.tile.kv / 16), block_range{0, at::q_rows}>(
        dq, [&](std::uint32_t(&word)[4], int inner, int m) { left.load(word, m * at::q_q, inner); },
        right);
    float* sums = args_.dq_sums + row_of(q_tile) * (P.tile.q * P.dim) + 4 * threadIdx.x;
#pragma unroll
    for (int m = 0; m < at::q_rows; ++m) {
#pragma unroll
      for (int n = 0; n < 2 * at::q_columns; ++n) {
        ptx::add_to_global(sums + (m * 2 * at::q_columns + n) * 4 * threads, dq[m] + 4 * n);
      }
    }
  }

  /// Lets the next block add to the query tile that this block added to in its last step; this
  /// block's warps must have met since. The last one does so where it would wait anyway.
  __device__ void pass_on() {
    if (pending_ >= 0 && me_.warp == P.warps - 1 && at::lane() == 0) {
      dq_turn::pass_on(args_.dq_done + row_of(pending_), kv_tile_);
    }
    pending_ = -1;
  }

  __device__ void finish() const {
    const row_store to = me_.of_weights() ? args_.dv : args_.dk;
    // The usual case has code of its own: among the others, its instructions would lie far apart.
    if (!to.is_float && to.vectors) {
      each_row_of_sums([&](int row, int column, const float(&value)[8]) {
        store_quad_vectors<T>(to, batch_, kv_head_, row, column, value);
      });
    } else {
      each_row_of_sums([&](int row, int column, const float(&value)[8]) {
        store_quad<T>(to, batch_, kv_head_, row, column, value);
      });
    }
  }

  template <class Store>
  __device__ void each_row_of_sums(const Store& store) const {
    const float scale = me_.of_weights() ? 1.0f : args_.scale;
    const int row = kv_tile_ * P.tile.kv + me_.key_row() + fragment_layout::first_row(at::lane());
#pragma unroll
    for (int m = 0; m < at::k_rows; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int n = 0; n < at::k_columns; n += 2) {
          float value[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            value[i] = sums_[m][8 * n + 4 * (i / 2) + 2 * r + i % 2] * scale;
          }
          store(row + 16 * m * at::k_kv + 8 * r, me_.key_column() + 16 * n, value);
        }
      }
    }
  }

  /// Where the query tile's rows begin in arrays [batch, head, q_tiles], in tiles.
  __device__ index_t row_of(int q_tile) const {
    return (index_t{batch_} * args_.heads + head_) * args_.q_tiles + q_tile;
  }
  const Arguments& args_;
  const at me_{};
  std::uint32_t shared_;
  int kv_tile_, kv_head_, batch_;
  int head_ = 0;
  int stage_ = 0;
  int pending_ = -1; ///< the query tile that was added to last, until that is passed on
  float sums_[at::k_rows][8 * at::k_columns] = {}; ///< of dv or dk
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

} // namespace maskring::cuda::detail::sm80
