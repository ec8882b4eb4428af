// SPDX-License-Identifier: Apache-2.0
// Choosing the portable forward kernel's shape, and launching it.
#pragma once

#include <maskring/cuda/detail/device.cuh>
#include <maskring/cuda/detail/sm80/forward_kernel.cuh>

namespace maskring::cuda::detail::sm80 {

/// The shape for these head dimensions. All fit the 99 KB of shared memory that every device of
/// compute capability 8.x gives a block, and maps with tiles of 128 × 128.
constexpr forward_policy forward_shape(int qk_dim, int v_dim) {
  const auto up = [](int dim) { return dim <= 128 ? (dim + 31) / 32 * 32 : (dim + 63) / 64 * 64; };
  const int qk = up(qk_dim), v = up(v_dim);
  const int larger = qk > v ? qk : v;
  if (larger <= 64) return {qk, v, {128, 128}, 4, 2};
  if (larger <= 128) return {qk, v, {128, 64}, 4, 2};
  // 16 rows to a warp: twice as many sums would not fit a thread's registers.
  if (larger <= 192) return {qk, v, {128, 64}, 8, 1};
  return {qk, v, {128, 32}, 8, 1};
}

/// The shape where a block may have more shared memory.
constexpr forward_policy roomy(forward_policy shape) {
  if (shape.tile.kv == 32) shape.tile.kv = 64;
  return shape;
}

/// out = softmax(score(scale · q kᵀ) where mask) v and its log-sum-exp, continuing from
/// `in.previous`; queued on `stream`. `map` lies in device memory, or has null rows: everything is
/// visible. A block may take `memory` bytes of shared memory.
template <forward_policy P, class T, class O, class Mask, class Score>
void forward(const inputs<T>& in, const results<O>& out, const Mask& mask,
             const block_map_view& map, const Score& score, const problem& p, int memory,
             cudaStream_t stream) {
  using arguments = forward_arguments<P, T, Mask, Score>;
  if (p.q_len == 0) return;
  if constexpr (constexpr auto larger = roomy(P); larger.tile != P.tile) {
    if (memory >= larger.bytes() && map.tile.kv % larger.tile.kv == 0) {
      return forward<larger>(in, out, mask, map, score, p, memory, stream);
    }
  }
  require_block_memory("forward", P.bytes(), memory);
  const int blocks = P.blocks * device_attribute(cudaDevAttrMultiProcessorCount);
  const work_order order = work_order::make(p, P.tile, blocks, map.rows.offsets == nullptr);
  const arguments args{in.q,
                       in.k,
                       in.v,
                       {row_store::of(out.out), out.lse, in.previous, in.sink},
                       map,
                       mask,
                       score,
                       p.scale,
                       order,
                       static_cast<int>((p.kv_len + P.tile.kv - 1) / P.tile.kv),
                       map.tile.kv / P.tile.kv,
                       static_cast<int>(p.group()),
                       static_cast<int>(p.q_len),
                       static_cast<int>(p.kv_len),
                       has_vectors(in.q),
                       has_vectors(in.k),
                       has_vectors(in.v)};
  launch(&forward_kernel<arguments>, "the launch of sm80::forward_kernel",
         index_t{order.q_tiles} * p.q_heads * p.batch, P.threads(), P.bytes(), stream, args);
}

} // namespace maskring::cuda::detail::sm80
