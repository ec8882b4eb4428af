// SPDX-License-Identifier: Apache-2.0
// The shapes of the portable backward kernel, and what it is told.
#pragma once

#include <maskring/block/map.hpp>
#include <maskring/core/view.hpp>
#include <maskring/cuda/detail/store.cuh>
#include <maskring/score/concepts.hpp>

#include <type_traits>

namespace maskring::cuda::detail::sm80 {

/// A shape of the backward kernel. Half of the warps (a group) make weights and dv, the others
/// their gradients and dk, all of them dq. Each product is dealt out to the warps as a grid.
struct backward_policy {
  int dim = 128; ///< head dimension; smaller ones are filled with 0
  tile_shape tile{64, 128};
  int warps = 8;
  int s_warps = 1; ///< of a group along the queries, of scores: the others lie along the keys
  int k_warps = 2; ///< of a group along the keys, of dk or dv
  int q_warps = 2; ///< of all along the queries, of dq
  int stages = 2;  ///< tiles of queries and their output gradients held: 2, or 1

  constexpr int threads() const { return 32 * warps; }
  constexpr int group_warps() const { return warps / 2; }

  // Shared memory, in bytes from its beginning.
  constexpr int k_at() const { return 0; }
  constexpr int v_at() const { return 2 * tile.kv * dim; }
  constexpr int q_at(int stage) const { return 2 * (2 * tile.kv + stage * tile.q) * dim; }
  constexpr int o_at(int stage) const { return q_at(stages) + 2 * stage * tile.q * dim; }
  constexpr int p_at() const { return o_at(stages); }
  constexpr int ds_at() const { return p_at() + 2 * tile.q * tile.kv; }
  /// Each row's lse and delta.
  constexpr int rows_at(int stage) const {
    return ds_at() + 2 * tile.q * tile.kv + stage * tile.q * 8;
  }
  constexpr int bytes() const { return rows_at(stages); }
};

/// The shape for these head dimensions; needs up to 162 KB of shared memory.
constexpr backward_policy backward_shape(int qk_dim, int v_dim) {
  const int larger = qk_dim > v_dim ? qk_dim : v_dim;
  if (larger <= 64) return {64, {128, 128}, 8, 2, 2, 4, 2};
  if (larger <= 128) return {128, {64, 128}, 8, 1, 2, 2, 2};
  return {256, {64, 64}, 8, 2, 1, 2, 1};
}

/// The shape that stands in for it where a block has 99 KB of shared memory.
constexpr backward_policy modest(backward_policy shape) {
  if (shape.dim == 64) return {64, {64, 128}, 8, 1, 2, 4, 2};
  if (shape.dim == 128) return {128, {64, 64}, 8, 2, 1, 2, 1};
  return {256, {32, 32}, 4, 1, 1, 2, 1};
}
static_assert(modest({64}).bytes() <= 99 * 1024 && modest({128}).bytes() <= 99 * 1024 &&
              modest({256}).bytes() <= 99 * 1024);

/// Everything one launch computes; see forward_arguments for why the policy is part of the type.
template <backward_policy P, class T, class Mask, class Score>
struct backward_arguments {
  static constexpr backward_policy policy = P;
  static constexpr bool has_score = !std::is_same_v<Score, maskring::score::none>;
  using input_type = T;

  view<const T, 4> q, k, v, dout;
  row_store dk, dv;
  block_map_view map; ///< offsets null: every pair is visible
  Mask mask;
  Score score;
  float scale;
  const float*
      lse2; ///< [batch, head, q_tiles · tile.q], in powers of two; inf where nothing counts
  const float* delta; ///< the same shape: Σ dout · out − dlse
  float* dq_sums;     ///< [batch, head, q_tiles][tile.q · dim], a tile as the threads hold it
  int* dq_done;       ///< [batch, head, q_tiles], see dq_turn
  int* next_unit;
  int layers; ///< batch · kv_heads
  int heads, kv_heads, group, q_len, kv_len;
  int q_tiles, kv_tiles; ///< of the kernel
  int q_tiles_per_map_tile, kv_tiles_per_map_tile;
  bool q_vectors, k_vectors, v_vectors, dout_vectors;
  bool ordered; ///< dq is added up in one order: the same bits each time
};

} // namespace maskring::cuda::detail::sm80
