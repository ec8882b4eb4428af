// SPDX-License-Identifier: Apache-2.0
// The portable forward kernel: cp.async, ldmatrix, mma.sync, for 16-bit elements.
//
// A block owns a tile of queries of one head and walks the key tiles that its row of the block map
// names. Each warp owns 16 or 32 of the queries, so that a row's softmax stays within four lanes.
// Keys arrive while the previous tile's values are multiplied, values while scores are computed.
#pragma once

#include <maskring/cuda/detail/kept_scores.cuh>
#include <maskring/cuda/detail/ptx/mma.cuh>
#include <maskring/cuda/detail/row_result.cuh>
#include <maskring/cuda/detail/sm80/block_verdicts.cuh>
#include <maskring/cuda/detail/sm80/tile.cuh>
#include <maskring/cuda/detail/softmax.cuh>
#include <maskring/cuda/detail/tile_walk.cuh>
#include <maskring/cuda/detail/work_order.hpp>
#include <maskring/shard/packed_heads.hpp>

#include <cstddef>

namespace maskring::cuda::detail::sm80 {

/// A shape of the forward kernel.
struct forward_policy {
  int qk_dim = 128; ///< head dimension of queries and keys; smaller ones are filled with 0
  int v_dim = 128;
  tile_shape tile{128, 64};
  int warps = 4;
  int blocks = 2; ///< that a multiprocessor is meant to hold

  constexpr int threads() const { return 32 * warps; }
  constexpr int warp_rows() const { return tile.q / warps; }
  constexpr int bytes() const {
    const int tiles = 2 * (tile.q * qk_dim + tile.kv * (qk_dim + v_dim));
    const int results = warps * 8 * v_dim * 4; // a warp's staged_rows
    return tiles > results ? tiles : results;
  }
};

/// Everything one launch computes. The policy and the types are part of this type because nvcc 13.0
/// cannot launch a kernel that has a namespaced struct among its own template arguments.
template <forward_policy P, class T, class Mask, class Score>
struct forward_arguments {
  static constexpr forward_policy policy = P;
  static constexpr bool has_score = !std::is_same_v<Score, maskring::score::none>;
  using input_type = T;

  view<const T, 4> q, k, v;
  row_target target;
  block_map_view map; ///< rows.offsets null: every pair is visible
  Mask mask;
  Score score;
  float scale;
  work_order order;
  int kv_tiles;
  int tiles_per_map_tile; ///< key tiles of the kernel to one of the map
  int group, q_len, kv_len;
  bool q_vectors, k_vectors, v_vectors;
};

template <class Arguments>
class forward_block {
  static constexpr forward_policy P = Arguments::policy;
  using T = typename Arguments::input_type;
  // A warp's rows are strips of 16 that lie apart: where the border of a mask leaves some strips of
  // a tile without work, it then leaves each warp some.
  static constexpr int strips = P.warp_rows() / 16;
  static constexpr int stride = 16 * P.warps;
  static_assert(strips * stride == P.tile.q);
  using q_layout = tile_layout<P.tile.q, P.qk_dim>;
  using k_layout = tile_layout<P.tile.kv, P.qk_dim>;
  using v_layout = tile_layout<P.tile.kv, P.v_dim>;
  using score_sums = float[strips][P.tile.kv / 2];

public:
  __device__ forward_block(const Arguments& args, std::uint32_t shared, const work_item& item)
      : args_{args},
        batch_{item.batch},
        head_{item.head},
        q_tile_{item.q_tile},
        score_{score_at(args.score, batch_, head_)},
        keys_{row_source::of(args.k, batch_, head_ / args.group, args.k_vectors)},
        values_{row_source::of(args.v, batch_, head_ / args.group, args.v_vectors)},
        k_shared_{shared + q_layout::bytes},
        v_shared_{k_shared_ + k_layout::bytes},
        q_reader_{shared, 16 * warp()},
        k_reader_{k_shared_},
        v_reader_{v_shared_} {
    fill_tile<q_layout, P.threads()>(shared, row_source::of(args.q, batch_, head_, args.q_vectors),
                                     item.q_tile * P.tile.q);
  }

  /// `memory` is all of the block's shared memory.
  __device__ void run(float* memory) {
    const index_t row = args_.map.row(batch_, head_, q_tile_ * P.tile.q / args_.map.tile.q);
    tile_walk<> walk{args_.map.rows, row, args_.tiles_per_map_tile, args_.kv_tiles};
    if (!walk.done()) fill_tile<k_layout, P.threads()>(k_shared_, keys_, walk.tile() * P.tile.kv);
    ptx::commit_copies();
    while (!walk.done()) {
      const int key = walk.tile() * P.tile.kv;
      const bool masked = walk.partial() || key + P.tile.kv > args_.kv_len;
      walk.advance();
      if (masked) {
        step<true>(key, walk);
      } else {
        step<false>(key, walk);
      }
    }
    ptx::wait_copies<0>();
    finish(memory);
  }

private:
  /// Strips [first, last) of a warp.
  template <int First, int Last>
  struct strip_range {
    static constexpr int first = First, last = Last;
  };

  /// Calls `run` with the strips whose bits are set, if any.
  template <class Run>
  static __device__ void with_strips(std::uint32_t seen, Run&& run) {
    if constexpr (strips == 2) {
      if (seen == 1) return run(strip_range<0, 1>{});
      if (seen == 2) return run(strip_range<1, 2>{});
    }
    if (seen != 0) run(strip_range<0, strips>{});
  }

  /// Takes in the tile of keys that begins at `key`; `next` is the one to fetch meanwhile.
  template <bool Masked>
  __device__ void step(int key, const tile_walk<>& next) {
    std::uint32_t seen = (1u << strips) - 1;
    if constexpr (Masked) {
      verdicts_.look_at(mask_question{args_}, batch_, head_, first_row(), key / P.tile.kv);
      seen = verdicts_.seen();
    }
    q_reader_.forget(), k_reader_.forget(), v_reader_.forget();
    score_sums scores = {};
    ptx::wait_copies<0>();
    __syncthreads(); // these keys have arrived; the previous values are used up
    fill_tile<v_layout, P.threads()>(v_shared_, values_, key);
    ptx::commit_copies();
    with_strips(seen, [&](auto range) { multiply_queries_by_keys(range, scores); });
    ptx::wait_copies<0>();
    __syncthreads(); // these values have arrived; the keys are used up
    if (!next.done()) {
      fill_tile<k_layout, P.threads()>(k_shared_, keys_, next.tile() * P.tile.kv);
    }
    ptx::commit_copies();
    with_strips(seen, [&](auto range) { take_in<Masked>(range, scores, key); });
  }

  template <class Range>
  __device__ void multiply_queries_by_keys(Range, score_sums& scores) const {
#pragma unroll
    for (int inner = 0; inner < P.qk_dim / 16; ++inner) {
      std::uint32_t a[strips][4];
#pragma unroll
      for (int m = Range::first; m < Range::last; ++m) {
        q_reader_.load(a[m], m * stride / 16, inner);
      }
#pragma unroll
      for (int n = 0; n < P.tile.kv / 16; ++n) {
        std::uint32_t b[4];
        k_reader_.load(b, n, inner);
#pragma unroll
        for (int m = Range::first; m < Range::last; ++m) {
          ptx::mma<T>(scores[m] + 8 * n, a[m], b[0], b[1]);
          ptx::mma<T>(scores[m] + 8 * n + 4, a[m], b[2], b[3]);
        }
      }
    }
  }

  /// Softmax of the scores, and their weights' product with the values.
  template <bool Masked, class Range>
  __device__ void take_in(Range, score_sums& scores, int key) {
    const float unit = Arguments::has_score ? log2_e : args_.scale * log2_e;
    std::uint32_t weights[strips][P.tile.kv / 16][4];
#pragma unroll
    for (int m = Range::first; m < Range::last; ++m) {
      const score_origin origin{batch_, head_,
                                first_row() + m * stride + fragment_layout::first_row(lane()),
                                key + fragment_layout::first_column(lane())};
      if constexpr (Arguments::has_score) {
        apply_score<score_number<T>>(scores[m], score_, args_.scale, origin, args_.q_len,
                                     args_.kv_len);
      }
      if constexpr (Masked) {
        kept_scores<P.tile.kv>{mask_question{args_}, verdicts_.some(m), verdicts_.all(m), origin}
            .apply(scores[m]);
      }
    }
    bool exceeded = false;
#pragma unroll
    for (int m = Range::first; m < Range::last; ++m) {
      exceeded |= rows_[m].exceeded(scores[m], unit);
    }
    if (__any_sync(~0u, exceeded)) {
#pragma unroll
      for (int m = Range::first; m < Range::last; ++m) {
        float factor[2];
        rows_[m].raise(scores[m], unit, factor);
        scale_rows(out_[m], factor);
      }
    }
#pragma unroll
    for (int m = Range::first; m < Range::last; ++m) {
      rows_[m].weigh(scores[m], unit);
#pragma unroll
      for (int i = 0; i < P.tile.kv / 16; ++i) {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          weights[m][i][w] = ptx::pack<T>(scores[m][8 * i + 2 * w], scores[m][8 * i + 2 * w + 1]);
        }
      }
    }
#pragma unroll
    for (int inner = 0; inner < P.tile.kv / 16; ++inner) {
#pragma unroll
      for (int n = 0; n < P.v_dim / 16; ++n) {
        std::uint32_t b[4];
        v_reader_.load_transposed(b, inner, n);
#pragma unroll
        for (int m = Range::first; m < Range::last; ++m) {
          ptx::mma<T>(out_[m] + 8 * n, weights[m][inner], b[0], b[1]);
          ptx::mma<T>(out_[m] + 8 * n + 4, weights[m][inner], b[2], b[3]);
        }
      }
    }
  }

  /// Stores the results, 8 rows of the warp at a time. The tiles in shared memory are used up.
  __device__ void finish(float* memory) const {
    __syncthreads();
    constexpr int eights = 2 * strips;
    const float scale = Arguments::has_score ? 1.0f : args_.scale;
    const auto row_of = [&](int eight) { return first_row() + eight / 2 * stride + eight % 2 * 8; };
    // Each lane of a quad looks after one of the quad's rows.
    softmax_state<float> state;
#pragma unroll
    for (int i = 0; i < eights; ++i) {
      const softmax_state<float> row = rows_[i / 2].finish(i % 2, scale);
      if (lane() % eights == i) state = row;
    }
    const int mine = row_of(lane() % eights) + lane() / 4;
    const row_shares shares{args_.target, state, batch_,
                            head_,        mine,  shard::query_head(args_.mask, head_, mine)};
    if (lane() % 4 < eights && mine < args_.q_len && args_.target.lse.data != nullptr) {
      args_.target.lse(batch_, head_, mine) = shares.lse;
    }
    const staged_rows<P.v_dim> staged{memory + warp() * 8 * P.v_dim};
#pragma unroll 1
    for (int eight = 0; eight < eights; ++eight) {
      const int from = lane() / 4 * 4 + eight;
      const float own = __shfl_sync(~0u, shares.own, from);
#pragma unroll
      for (int i = 0; i < eights; ++i) {
        if (i == eight) staged.put(out_[i / 2], i % 2, own);
      }
      __syncwarp();
      staged.template store<T>(args_.target, batch_, head_, row_of(eight),
                               __shfl_sync(~0u, shares.carried, from));
      __syncwarp();
    }
  }

  __device__ int first_row() const { return q_tile_ * P.tile.q + 16 * warp(); }
  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ int warp() { return static_cast<int>(threadIdx.x) / 32; }

  const Arguments& args_;
  int batch_, head_, q_tile_;
  decltype(score_at(std::declval<const Arguments&>().score, 0, 0)) score_;
  row_source keys_, values_;
  std::uint32_t k_shared_, v_shared_;
  block_reader<q_layout, false> q_reader_;
  block_reader<k_layout, true> k_reader_;
  block_reader<v_layout, false> v_reader_;
  block_verdicts<strips, P.tile.kv / 16, stride> verdicts_;
  online_softmax rows_[strips];
  float out_[strips][P.v_dim / 2] = {};
};

template <class Arguments>
__global__ void __launch_bounds__(Arguments::policy.threads(), Arguments::policy.blocks)
    forward_kernel(const __grid_constant__ Arguments args) {
  extern __shared__ __align__(128) std::byte memory[];
  work_item item = args.order.last_first(static_cast<int>(blockIdx.x));
  if (args.map.longest != nullptr && args.map.tile.q == Arguments::policy.tile.q) {
    const int rank = args.order.q_tiles - 1 - item.q_tile;
    const int found = args.map.longest[args.map.row(item.batch, item.head, 0) + rank];
    // Known to be one for all lanes, it takes no register of each.
    item.q_tile = static_cast<int>(__reduce_or_sync(~0u, static_cast<unsigned>(found)));
  }
  forward_block<Arguments>{args, static_cast<std::uint32_t>(__cvta_generic_to_shared(memory)), item}
      .run(reinterpret_cast<float*>(memory));
}

} // namespace maskring::cuda::detail::sm80
