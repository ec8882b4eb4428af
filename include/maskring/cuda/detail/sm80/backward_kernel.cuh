// SPDX-License-Identifier: Apache-2.0
// The portable backward kernel: one pass that makes dk and dv in registers and adds up dq in memory.
//
// A block owns a tile of keys of one key head. It walks the query tiles that its column of the block
// map names, for every query head of the group, from the last tile to the first; so dk and dv need
// no other block. dq of a query tile is the sum of what several blocks find. They add in the order
// of their keys: whoever is not yet next waits. Blocks begin in that order and all walk the same
// way, so each follows the block before it at a distance, and rarely waits once that is found.
#pragma once

#include <maskring/core/problem.hpp>
#include <maskring/cuda/detail/dq_order.cuh>
#include <maskring/cuda/detail/fragment.cuh>
#include <maskring/cuda/detail/learn.cuh>
#include <maskring/cuda/detail/ptx/mma.cuh>
#include <maskring/cuda/detail/ptx/red.cuh>
#include <maskring/cuda/detail/sm80/backward_policy.cuh>
#include <maskring/cuda/detail/sm80/tile.cuh>
#include <maskring/cuda/detail/softmax.cuh>
#include <maskring/cuda/detail/store.cuh>
#include <maskring/cuda/detail/tile_walk.cuh>

#include <cstddef>

namespace maskring::cuda::detail::sm80 {

template <class Arguments>
class backward_block {
  static constexpr backward_policy P = Arguments::policy;
  using T = typename Arguments::input_type;
  static constexpr int threads = P.threads();

  using q_layout = tile_layout<P.tile.q, P.qk_dim>;
  using k_layout = tile_layout<P.tile.kv, P.qk_dim>;
  using v_layout = tile_layout<P.tile.kv, P.v_dim>;
  using o_layout = tile_layout<P.tile.q, P.v_dim>;
  using score_layout = tile_layout<P.tile.q, P.tile.kv>;

  // What a warp owns of each product, in blocks of 16 × 16.
  static constexpr int s_rows = P.tile.q / P.s_warps / 16;
  static constexpr int s_columns = P.tile.kv / (P.warps / P.s_warps) / 16;
  static constexpr int k_rows = P.tile.kv / P.k_warps / 16;
  static constexpr int k_columns = P.qk_dim / (P.warps / P.k_warps) / 16;
  static constexpr int v_columns = P.v_dim / (P.warps / P.k_warps) / 16;
  static constexpr int q_rows = P.tile.q / P.q_warps / 16;
  static constexpr int q_columns = P.qk_dim / (P.warps / P.q_warps) / 16;
  static_assert(s_rows * s_columns * k_rows * k_columns * v_columns * q_rows * q_columns > 0);

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
    fill_tile<v_layout, threads>(shared_ + P.v_at(),
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
      while (!walk.done()) {
        const int tile = walk.tile();
        const bool masked = walk.partial() || last_keys;
        walk.advance();
        if (masked) {
          step<true>(tile, walk);
        } else {
          step<false>(tile, walk);
        }
      }
      if (args_.ordered) {
        __syncthreads();
        pass_on();
      }
    }
    ptx::wait_copies<0>();
    finish();
  }

private:
  __device__ void fetch(int q_tile, int stage) const {
    const int first = q_tile * P.tile.q;
    fill_tile<q_layout, threads>(shared_ + q_at(stage),
                                 row_source::of(args_.q, batch_, head_, args_.q_vectors), first);
    fill_tile<o_layout, threads>(shared_ + o_at(stage),
                                 row_source::of(args_.dout, batch_, head_, args_.dout_vectors),
                                 first);
    const int row = static_cast<int>(threadIdx.x);
    if (row < P.tile.q) {
      const index_t at = row_of(q_tile) * P.tile.q + row;
      ptx::copy_async_word(shared_ + rows_at(stage) + 4 * row, args_.lse2 + at);
      ptx::copy_async_word(shared_ + rows_at(stage) + 4 * (P.tile.q + row), args_.delta + at);
    }
  }

  /// A value of the query rows in shared memory, the first or second of this lane in part m.
  __device__ void load_rows(float (&value)[2], int at, int m) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      asm volatile("ld.shared.f32 %0, [%1];"
                   : "=f"(value[r])
                   : "r"(shared_ + at + 4 * (score_row() + 16 * m + 8 * r)));
    }
  }

  template <bool Masked>
  __device__ void step(int q_tile, const tile_walk<direction::down>& next) {
    const index_t rows = row_of(q_tile);
    dq_turn turn;
    if (args_.ordered && warp() == 0) turn.begin(args_.map, batch_, head_, q_tile * P.tile.q / args_.map.tile.q);

    ptx::wait_copies<0>();
    __syncthreads();  // the queries are here; the previous step's tiles are used up
    if constexpr (P.stages == 2) {
      if (!next.done()) fetch(next.tile(), 1 - stage_);
      ptx::commit_copies();
    }

    constexpr int count = 8 * s_columns;
    float p[s_rows][count] = {};
    multiply<q_layout, k_layout, s_rows, s_columns, P.qk_dim / 16>(
        p, shared_ + q_at(stage_), shared_ + P.k_at(), score_warp_row(), score_warp_column());
    if (args_.ordered && warp() == 0) turn.look(args_.map, args_.dq_done + rows);
    const float unit = Arguments::has_score ? log2_e : args_.scale * log2_e;
    if constexpr (!Arguments::has_score) {
#pragma unroll
      for (int m = 0; m < s_rows; ++m) {
        if constexpr (Masked) {
          apply_mask(p[m], args_.mask, origin(q_tile, m), args_.q_len, args_.kv_len);
        }
        float lse[2];
        load_rows(lse, rows_at(stage_), m);
#pragma unroll
        for (int i = 0; i < count; ++i) {
          p[m][i] = ptx::exp2(p[m][i] * unit - lse[fragment_layout::row(i)]);
        }
      }
      store_scores(p, P.p_at());
    }

    float ds[s_rows][count] = {};
    multiply<o_layout, v_layout, s_rows, s_columns, P.v_dim / 16>(
        ds, shared_ + o_at(stage_), shared_ + P.v_at(), score_warp_row(), score_warp_column());
#pragma unroll
    for (int m = 0; m < s_rows; ++m) {
      float delta[2];
      load_rows(delta, rows_at(stage_) + 4 * P.tile.q, m);
      if constexpr (Arguments::has_score) {
        float lse[2];
        load_rows(lse, rows_at(stage_), m);
        differentiate<Masked>(p[m], ds[m], lse, delta, origin(q_tile, m));
      } else {
#pragma unroll
        for (int i = 0; i < count; ++i) {
          ds[m][i] = p[m][i] * (ds[m][i] - delta[fragment_layout::row(i)]);
        }
      }
    }
    if constexpr (Arguments::has_score) store_scores(p, P.p_at());
    store_scores(ds, P.ds_at());
    if (args_.ordered) pass_on();  // only now: what was added has long arrived, the fence is short
    if (args_.ordered) {
      if (warp() == 0) {
        turn.wait(args_.map, args_.dq_done + rows, kv_tile_, args_.kv_tiles_per_map_tile);
      }
    }
    __syncthreads();  // the weights and their gradients are here

    accumulate<score_layout, o_layout, v_columns>(dv_, shared_ + P.p_at(),
                                                  shared_ + o_at(stage_));
    add_dq(rows);
    if (args_.ordered) pending_ = args_.dq_done + rows;
    accumulate<score_layout, q_layout, k_columns>(dk_, shared_ + P.ds_at(),
                                                  shared_ + q_at(stage_));
    if constexpr (P.stages == 2) {
      stage_ = 1 - stage_;
    } else {
      __syncthreads();
      if (!next.done()) fetch(next.tile(), 0);
      ptx::commit_copies();
    }
  }

  /// The derivative of the score modifier joins in: p and ds from raw products.
  template <bool Masked, int Count>
  __device__ void differentiate(float (&p)[Count], float (&ds)[Count], const float (&lse)[2],
                                const float (&delta)[2], score_origin at) const {
    const auto score = score_at(args_.score, at.batch, at.head);
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      const int r = fragment_layout::row(i);
      const int q = min(at.q + 8 * r, args_.q_len - 1);
      const int kv = at.kv + fragment_layout::column(i);
      bool visible = true;
      if constexpr (Masked) {
        visible = kv < args_.kv_len && static_cast<bool>(args_.mask(at.batch, at.head, q, kv));
      }
      dual<score_number<T>> s{0.0f, 0.0f};
      if (visible) {
        s = score(dual<score_number<T>>{p[i] * args_.scale, 1.0f}, at.batch, at.head, q, kv);
      }
      const float product = p[i] * args_.scale;
      p[i] = visible ? ptx::exp2(s.value * log2_e - lse[r]) : 0.0f;
      // A weight of 0 passes no gradient, also where the modifier gave −inf and no derivative.
      const float dscore = p[i] * (ds[i] - delta[r]);
      if (p[i] > 0) learn(args_.score, dscore, product, at.batch, at.head, q, kv);
      ds[i] = p[i] > 0 ? static_cast<float>(dscore * s.derivative) : 0.0f;
    }
  }

  /// sums += a · bᵀ, both stored inner index last.
  template <class A, class B, int Rows, int Columns, int Inner>
  __device__ static void multiply(float (&sums)[Rows][8 * Columns], std::uint32_t a_shared,
                                  std::uint32_t b_shared, int row, int column) {
    const block_reader<A, false> a_reader{a_shared, row};
    const block_reader<B, true> b_reader{b_shared, column};
#pragma unroll
    for (int inner = 0; inner < Inner; ++inner) {
      std::uint32_t a[Rows][4];
#pragma unroll
      for (int m = 0; m < Rows; ++m) a_reader.load(a[m], m, inner);
#pragma unroll
      for (int n = 0; n < Columns; ++n) {
        std::uint32_t b[4];
        b_reader.load(b, n, inner);
#pragma unroll
        for (int m = 0; m < Rows; ++m) {
          ptx::mma<T>(sums[m] + 8 * n, a[m], b[0], b[1]);
          ptx::mma<T>(sums[m] + 8 * n + 4, a[m], b[2], b[3]);
        }
      }
    }
  }

  /// sums += aᵀ · b over the queries, both stored query first.
  template <class A, class B, int Columns>
  __device__ void accumulate(float (&sums)[k_rows][8 * Columns], std::uint32_t a_shared,
                             std::uint32_t b_shared) const {
    const block_reader<A, true> a_reader{a_shared, 0, key_warp_row() / 8};
    const block_reader<B, false> b_reader{b_shared, 0, key_warp_part() * Columns * 2};
#pragma unroll
    for (int inner = 0; inner < P.tile.q / 16; ++inner) {
      std::uint32_t a[k_rows][4];
#pragma unroll
      for (int m = 0; m < k_rows; ++m) a_reader.load_transposed(a[m], inner, m);
#pragma unroll
      for (int n = 0; n < Columns; ++n) {
        std::uint32_t b[4];
        b_reader.load_transposed(b, inner, n);
#pragma unroll
        for (int m = 0; m < k_rows; ++m) {
          ptx::mma<T>(sums[m] + 8 * n, a[m], b[0], b[1]);
          ptx::mma<T>(sums[m] + 8 * n + 4, a[m], b[2], b[3]);
        }
      }
    }
  }

  /// Adds ds · k to the query tile's sums in memory, which lie as the threads hold them.
  __device__ void add_dq(index_t rows) const {
    float dq[q_rows][8 * q_columns] = {};
    const block_reader<score_layout, false> a_reader{shared_ + P.ds_at(),
                                                     warp() % P.q_warps * q_rows * 16};
    const block_reader<k_layout, false> b_reader{shared_ + P.k_at(), 0,
                                                 warp() / P.q_warps * q_columns * 2};
#pragma unroll
    for (int inner = 0; inner < P.tile.kv / 16; ++inner) {
      std::uint32_t a[q_rows][4];
#pragma unroll
      for (int m = 0; m < q_rows; ++m) a_reader.load(a[m], m, inner);
#pragma unroll
      for (int n = 0; n < q_columns; ++n) {
        std::uint32_t b[4];
        b_reader.load_transposed(b, inner, n);
#pragma unroll
        for (int m = 0; m < q_rows; ++m) {
          ptx::mma<T>(dq[m] + 8 * n, a[m], b[0], b[1]);
          ptx::mma<T>(dq[m] + 8 * n + 4, a[m], b[2], b[3]);
        }
      }
    }
    float* sums = args_.dq_sums + rows * (P.tile.q * P.qk_dim) + 4 * threadIdx.x;
#pragma unroll
    for (int m = 0; m < q_rows; ++m) {
#pragma unroll
      for (int n = 0; n < 2 * q_columns; ++n) {
        ptx::add_to_global(sums + (m * 2 * q_columns + n) * 4 * threads, dq[m] + 4 * n);
      }
    }
  }

  /// Writes weights or their gradients to shared memory, rounded to T, query by query.
  __device__ void store_scores(const float (&s)[s_rows][8 * s_columns], int at) const {
    const int row = score_row();
    const int chunk = score_warp_column() / 8;
    const std::uint32_t lane_bytes = threadIdx.x % 4 * 4;
#pragma unroll
    for (int m = 0; m < s_rows; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int n = 0; n < 2 * s_columns; ++n) {
          const std::uint32_t to =
              shared_ + at + score_layout::offset(row + 16 * m + 8 * r, chunk + n) + lane_bytes;
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(to),
                       "r"(ptx::pack<T>(s[m][4 * n + 2 * r], s[m][4 * n + 2 * r + 1]))
                       : "memory");
        }
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
    const float scale = args_.scale;
    const int row = kv_tile_ * P.tile.kv + key_warp_row() +
                    fragment_layout::first_row(static_cast<int>(threadIdx.x) % 32);
#pragma unroll
    for (int m = 0; m < k_rows; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        store_sums(args_.dk, dk_[m], r, row + 16 * m + 8 * r, key_warp_part() * k_columns * 16,
                   scale);
        store_sums(args_.dv, dv_[m], r, row + 16 * m + 8 * r, key_warp_part() * v_columns * 16,
                   1.0f);
      }
    }
  }

  template <int Count>
  __device__ void store_sums(const row_store& to, const float (&sums)[Count], int r, int row,
                             int column, float factor) const {
#pragma unroll
    for (int first = 0; first < Count * 2; first += 32) {
      float value[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        value[i] = sums[first / 2 + 4 * (i / 2) + 2 * r + i % 2] * factor;
      }
      store_quad<T>(to, batch_, kv_head_, row, column + first, value);
    }
  }

  // The policy's own functions with a run-time stage would need the policy in device memory.
  static __device__ int q_at(int stage) {
    constexpr int first = P.q_at(0), size = P.q_at(1) - first;
    return first + stage * size;
  }
  static __device__ int o_at(int stage) {
    constexpr int first = P.o_at(0), size = P.o_at(1) - first;
    return first + stage * size;
  }

  static __device__ int rows_at(int stage) {
    constexpr int first = P.rows_at(0), size = P.rows_at(1) - first;
    return first + stage * size;
  }

  /// Where the query tile's rows begin in arrays [batch, head, q_tiles], in tiles.
  __device__ index_t row_of(int q_tile) const {
    return (index_t{batch_} * args_.heads + head_) * args_.q_tiles + q_tile;
  }
  static __device__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
  static __device__ int score_warp_row() { return warp() % P.s_warps * s_rows * 16; }
  static __device__ int score_warp_column() { return warp() / P.s_warps * s_columns * 16; }
  static __device__ int score_row() {
    return score_warp_row() + fragment_layout::first_row(static_cast<int>(threadIdx.x) % 32);
  }
  static __device__ int key_warp_row() { return warp() % P.k_warps * k_rows * 16; }
  static __device__ int key_warp_part() { return warp() / P.k_warps; }

  __device__ score_origin origin(int q_tile, int m) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    return {batch_, head_, q_tile * P.tile.q + score_row() + 16 * m,
            kv_tile_ * P.tile.kv + score_warp_column() + fragment_layout::first_column(lane)};
  }

  const Arguments& args_;
  std::uint32_t shared_;
  int kv_tile_, kv_head_, batch_;
  int head_ = 0;
  int stage_ = 0;
  int* pending_ = nullptr;
  float dk_[k_rows][8 * k_columns] = {};
  float dv_[k_rows][8 * v_columns] = {};
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
