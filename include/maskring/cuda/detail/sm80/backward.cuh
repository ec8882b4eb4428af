// SPDX-License-Identifier: Apache-2.0
// Choosing the portable backward kernel's shape, its memory, and launching its three passes.
#pragma once

#include <maskring/cuda/detail/device.cuh>
#include <maskring/cuda/detail/row_sums.cuh>
#include <maskring/cuda/detail/sm80/backward_kernel.cuh>
#include <maskring/cuda/detail/sm80/dq_kernel.cuh>
#include <maskring/cuda/workspace.cuh>

namespace maskring::cuda::detail::sm80 {

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

/// Where a backward call's arrays lie in the workspace.
struct backward_memory {
  placement placed;
  std::size_t lse2, delta, dq_sums, dq_done, next_unit, end;

  backward_memory(backward_policy shape, const problem& p) {
    const index_t tiles = (p.q_len + shape.tile.q - 1) / shape.tile.q * p.q_heads * p.batch;
    lse2 = placed.add<float>(tiles * shape.tile.q);
    delta = placed.add<float>(tiles * shape.tile.q);
    dq_sums = placed.add<float>(tiles * shape.tile.q * shape.dim);
    dq_done = placed.add<int>(tiles);
    next_unit = placed.add<int>(1);
    end = placed.bytes();
  }
};

/// dq, dk, dv and dsink of forward(); queued on `stream`. A block may take `memory` bytes of
/// shared memory.
template <backward_policy P, class T, class O, class Mask, class Score>
void backward(const saved<T, O>& in, const upstream<T>& up, const gradient_stores& grad,
              const Mask& mask, const block_map_view& map, const Score& score, const problem& p,
              call_place place, bool ordered, int memory, workspace& scratch, cudaStream_t stream) {
  if constexpr (constexpr auto smaller = modest(P);
                may_lack_memory && smaller.bytes() < P.bytes()) {
    if (memory < P.bytes()) {
      return backward<smaller>(in, up, grad, mask, map, score, p, place, ordered, memory, scratch,
                               stream);
    }
  }
  require_block_memory("backward", P.bytes(), memory);
  const backward_memory arrays{P, p};
  scratch.reserve(arrays.end, stream);
  const int q_tiles = static_cast<int>((p.q_len + P.tile.q - 1) / P.tile.q);
  const int kv_tiles = static_cast<int>((p.kv_len + P.tile.kv - 1) / P.tile.kv);
  const int heads = static_cast<int>(p.q_heads);
  const index_t tiles = index_t{q_tiles} * heads * p.batch;
  float* const lse2 = scratch.at<float>(arrays.lse2);
  float* const delta = scratch.at<float>(arrays.delta);
  float* const dq_sums = scratch.at<float>(arrays.dq_sums);

  const std::size_t cleared = place.first ? arrays.dq_sums : arrays.dq_done;
  require_cuda(cudaMemsetAsync(scratch.at<void>(cleared), 0, arrays.end - cleared, stream),
               "cudaMemsetAsync");
  if (place.first) {
    sum_rows(up.dout, in.out, in.lse, up.dlse, q_tiles * P.tile.q, lse2, delta, stream);
  }

  using arguments = backward_arguments<P, T, Mask, Score>;
  launch(&backward_kernel<arguments>, "the launch of sm80::backward_kernel",
         kv_tiles * p.kv_heads * p.batch, P.threads(), P.bytes(), stream,
         arguments{in.q,
                   in.k,
                   in.v,
                   up.dout,
                   grad.dk,
                   grad.dv,
                   map,
                   mask,
                   score,
                   p.scale,
                   lse2,
                   delta,
                   dq_sums,
                   scratch.at<int>(arrays.dq_done),
                   scratch.at<int>(arrays.next_unit),
                   static_cast<int>(p.batch * p.kv_heads),
                   heads,
                   static_cast<int>(p.kv_heads),
                   static_cast<int>(p.group()),
                   static_cast<int>(p.q_len),
                   static_cast<int>(p.kv_len),
                   q_tiles,
                   kv_tiles,
                   map.tile.q / P.tile.q,
                   map.tile.kv / P.tile.kv,
                   has_vectors(in.q),
                   has_vectors(in.k),
                   has_vectors(in.v),
                   has_vectors(up.dout),
                   ordered});

  if (!place.last) return;
  launch(&dq_kernel<dq_arguments<P, T>>, "the launch of sm80::dq_kernel", tiles, P.threads(), 0,
         stream, {grad.dq, dq_sums, p.scale, q_tiles, heads});
  if (grad.dsink) {
    launch(&sink_kernel<1024>, "the launch of sink_kernel", heads, 1024, 0, stream,
           {in.sink, grad.dsink, lse2, delta, static_cast<int>(p.batch), heads, q_tiles * P.tile.q,
            static_cast<int>(p.q_len), grad.dq.accumulate});
  }
}

} // namespace maskring::cuda::detail::sm80
