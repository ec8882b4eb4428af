// SPDX-License-Identifier: Apache-2.0
// The portable forward kernel: cp.async, ldmatrix, mma.sync, for 16-bit elements.
//
// A block owns a tile of queries of one head and walks the key tiles that its row of the block map
// names. Each warp owns 16 or 32 of the queries, so that a row's softmax stays within four lanes.
// Keys arrive while the previous tile's values are multiplied, values while scores are computed.
#pragma once

#include <maskring/cuda/detail/row_result.cuh>
#include <maskring/cuda/detail/sm80/tile.cuh>
#include <maskring/cuda/detail/softmax.cuh>
#include <maskring/cuda/detail/tile_walk.cuh>
#include <maskring/cuda/detail/ptx/mma.cuh>

#include <cstddef>

namespace maskring::cuda::detail::sm80 {

/// A shape of the forward kernel.
struct forward_policy {
  int qk_dim = 128;  ///< head dimension of queries and keys; smaller ones are filled with 0
  int v_dim = 128;
  tile_shape tile{128, 64};
  int warps = 4;
  int blocks = 2;  ///< that a multiprocessor is meant to hold
  int stages = 1;  ///< tiles of keys and values held: 2, or 1 where memory is short

  constexpr int threads() const { return 32 * warps; }
  constexpr int warp_rows() const { return tile.q / warps; }
  constexpr int bytes() const { return 2 * (tile.q * qk_dim + stages * tile.kv * (qk_dim + v_dim)); }
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
  block_map_view map;  ///< rows.offsets null: every pair is visible
  Mask mask;
  Score score;
  float scale;
  int q_tiles, kv_tiles;
  int tiles_per_map_tile;  ///< key tiles of the kernel to one of the map
  int heads, group, q_len, kv_len;
  bool q_vectors, k_vectors, v_vectors;
};

template <class Arguments>
class forward_block {
  static constexpr forward_policy P = Arguments::policy;
  using T = typename Arguments::input_type;
  static constexpr int parts = P.warp_rows() / 16;  // of 16 rows, to a warp
  static_assert(parts * 16 * P.warps == P.tile.q);
  using q_layout = tile_layout<P.tile.q, P.qk_dim>;
  using k_layout = tile_layout<P.tile.kv, P.qk_dim>;
  using v_layout = tile_layout<P.tile.kv, P.v_dim>;

public:
  __device__ forward_block(const Arguments& args, std::uint32_t shared)
      : args_{args}, q_tile_{args.q_tiles - 1 - static_cast<int>(blockIdx.x) % args.q_tiles},
        head_{static_cast<int>(blockIdx.x) / args.q_tiles % args.heads},
        batch_{static_cast<int>(blockIdx.x) / args.q_tiles / args.heads},
        score_{score_at(args.score, batch_, head_)},
        keys_{row_source::of(args.k, batch_, head_ / args.group, args.k_vectors)},
        values_{row_source::of(args.v, batch_, head_ / args.group, args.v_vectors)},
        k_shared_{shared + q_layout::bytes}, v_shared_{k_shared_ + P.stages * k_layout::bytes},
        warp_row_{static_cast<int>(threadIdx.x) / 32 * P.warp_rows()}, q_reader_{shared, warp_row_},
        k_reader_{k_shared_}, v_reader_{v_shared_} {
    fill_tile<q_layout, P.threads()>(
        shared, row_source::of(args.q, batch_, head_, args.q_vectors), q_tile_ * P.tile.q);
  }

  __device__ void run() {
    const index_t row = args_.map.row(batch_, head_, q_tile_ * P.tile.q / args_.map.tile.q);
    tile_walk<> walk{args_.map.rows, row, args_.tiles_per_map_tile, args_.kv_tiles};
    if (!walk.done()) {
      fill_tile<k_layout, P.threads()>(k_shared_, keys_, walk.tile() * P.tile.kv);
      if constexpr (P.stages == 2) {
        fill_tile<v_layout, P.threads()>(v_shared_, values_, walk.tile() * P.tile.kv);
      }
    }
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
    finish();
  }

private:
  /// Takes in the tile of keys that begins at `key`; `next` is the one to fetch meanwhile.
  template <bool Masked>
  __device__ void step(int key, const tile_walk<>& next) {
    float scores[parts][P.tile.kv / 2] = {};
    ptx::wait_copies<0>();
    __syncthreads();  // these keys have arrived; the previous values are used up
    if constexpr (P.stages == 1) {
      fill_tile<v_layout, P.threads()>(v_shared_, values_, key);
      ptx::commit_copies();
      multiply_queries_by_keys(scores);
      ptx::wait_copies<0>();
      __syncthreads();  // these values have arrived; the keys are used up
      if (!next.done()) {
        fill_tile<k_layout, P.threads()>(k_shared_, keys_, next.tile() * P.tile.kv);
      }
      ptx::commit_copies();
    } else {
      const int other = 1 - stage_;
      if (!next.done()) {
        const int first = next.tile() * P.tile.kv;
        fill_tile<k_layout, P.threads()>(k_shared_ + other * k_layout::bytes, keys_, first);
        fill_tile<v_layout, P.threads()>(v_shared_ + other * v_layout::bytes, values_, first);
      }
      ptx::commit_copies();
      multiply_queries_by_keys(scores);
    }

    const float unit = Arguments::has_score ? log2_e : args_.scale * log2_e;
    std::uint32_t weights[parts][P.tile.kv / 16][4];
#pragma unroll
    for (int m = 0; m < parts; ++m) {
      const score_origin origin{batch_, head_, row_of(m), key + lane_column()};
      if constexpr (Arguments::has_score) {
        apply_score<score_number<T>>(scores[m], score_, args_.scale, origin, args_.q_len,
                                     args_.kv_len);
      }
      if constexpr (Masked) {
        apply_mask(scores[m], args_.mask, origin, args_.q_len, args_.kv_len);
      }
      float factor[2];
      if (rows_[m].template update<true>(scores[m], unit, factor)) scale_rows(out_[m], factor);
#pragma unroll
      for (int i = 0; i < P.tile.kv / 16; ++i) {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          weights[m][i][w] = ptx::pack<T>(scores[m][8 * i + 2 * w], scores[m][8 * i + 2 * w + 1]);
        }
      }
    }
    multiply_weights_by_values(weights);
    if constexpr (P.stages == 2) {
      const int other = 1 - stage_;
      k_reader_.move((other - stage_) * k_layout::bytes);
      v_reader_.move((other - stage_) * v_layout::bytes);
      stage_ = other;
    }
  }

  __device__ void multiply_queries_by_keys(float (&scores)[parts][P.tile.kv / 2]) const {
#pragma unroll
    for (int inner = 0; inner < P.qk_dim / 16; ++inner) {
      std::uint32_t a[parts][4];
#pragma unroll
      for (int m = 0; m < parts; ++m) q_reader_.load(a[m], m, inner);
#pragma unroll
      for (int n = 0; n < P.tile.kv / 16; ++n) {
        std::uint32_t b[4];
        k_reader_.load(b, n, inner);
#pragma unroll
        for (int m = 0; m < parts; ++m) {
          ptx::mma<T>(scores[m] + 8 * n, a[m], b[0], b[1]);
          ptx::mma<T>(scores[m] + 8 * n + 4, a[m], b[2], b[3]);
        }
      }
    }
  }

  __device__ void
  multiply_weights_by_values(const std::uint32_t (&weights)[parts][P.tile.kv / 16][4]) {
#pragma unroll
    for (int inner = 0; inner < P.tile.kv / 16; ++inner) {
#pragma unroll
      for (int n = 0; n < P.v_dim / 16; ++n) {
        std::uint32_t b[4];
        v_reader_.load_transposed(b, inner, n);
#pragma unroll
        for (int m = 0; m < parts; ++m) {
          ptx::mma<T>(out_[m] + 8 * n, weights[m][inner], b[0], b[1]);
          ptx::mma<T>(out_[m] + 8 * n + 4, weights[m][inner], b[2], b[3]);
        }
      }
    }
  }

  __device__ void finish() const {
    const float scale = Arguments::has_score ? 1.0f : args_.scale;
#pragma unroll
    for (int m = 0; m < parts; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        store_result<T>(args_.target, batch_, head_, row_of(m) + 8 * r, rows_[m].finish(r, scale),
                     out_[m], r);
      }
    }
  }

  __device__ int row_of(int part) const {
    return q_tile_ * P.tile.q + warp_row_ + 16 * part +
           fragment_layout::first_row(static_cast<int>(threadIdx.x) % 32);
  }
  static __device__ int lane_column() {
    return fragment_layout::first_column(static_cast<int>(threadIdx.x) % 32);
  }

  const Arguments& args_;
  int q_tile_, head_, batch_;
  decltype(score_at(std::declval<const Arguments&>().score, 0, 0)) score_;
  row_source keys_, values_;
  std::uint32_t k_shared_, v_shared_;
  int warp_row_;
  block_reader<q_layout, false> q_reader_;
  block_reader<k_layout, true> k_reader_;
  block_reader<v_layout, false> v_reader_;
  int stage_ = 0;
  online_softmax rows_[parts];
  float out_[parts][P.v_dim / 2] = {};
};

template <class Arguments>
__global__ void __launch_bounds__(Arguments::policy.threads(), Arguments::policy.blocks)
    forward_kernel(const __grid_constant__ Arguments args) {
  extern __shared__ __align__(128) std::byte memory[];
  forward_block<Arguments>{args, static_cast<std::uint32_t>(__cvta_generic_to_shared(memory))}.run();
}

}  // namespace maskring::cuda::detail::sm80
