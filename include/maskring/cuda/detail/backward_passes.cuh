// SPDX-License-Identifier: Apache-2.0
// The backward pass of 16-bit elements: its memory, and its three kernels.
#pragma once

#include <maskring/cuda/detail/row_sums.cuh>
#include <maskring/cuda/detail/sm80/backward.cuh>
#include <maskring/cuda/detail/sm80/dq_kernel.cuh>
#include <maskring/cuda/detail/sm90/backward.cuh>
#include <maskring/cuda/executor.cuh>

namespace maskring::cuda::detail {

/// Where a backward call's arrays lie in the workspace.
struct backward_memory {
  placement placed;
  std::size_t lse2, delta, dq_sums, dq_done, next_unit, end;

  backward_memory(sm80::backward_policy shape, const problem& p) {
    const index_t tiles = (p.q_len + shape.tile.q - 1) / shape.tile.q * p.q_heads * p.batch;
    lse2 = placed.add<float>(tiles * shape.tile.q);
    delta = placed.add<float>(tiles * shape.tile.q);
    dq_sums = placed.add<float>(tiles * shape.tile.q * shape.dim);
    dq_done = placed.add<int>(2 * tiles); // two groups on Hopper take turns by themselves
    next_unit = placed.add<int>(1);
    end = placed.bytes();
  }
};

/// The kernel that makes dk, dv and the sums of dq.
template <sm80::backward_policy P, class T, class Mask, class Score>
void run_backward_kernel(const sm80::backward_arguments<P, T, Mask, Score>& args, bool portable,
                         cudaStream_t stream) {
  if constexpr (constexpr auto shape = sm90::backward_shape(P.dim, P.dim);
                sm90::may_target_hopper && shape.tile == P.tile) {
    if (!portable && sm90::supported(shape, args)) return sm90::backward<shape>(args, stream);
  }
  sm80::backward(args, stream);
}

/// dq, dk, dv and dsink of forward(), queued on the executor's stream.
template <sm80::backward_policy P, class Executor, class T, class O, class Mask, class Score>
void backward_passes(const Executor& exec, const saved<T, O>& in, const upstream<T>& up,
                     const gradient_stores& grad, const Mask& mask, const block_map_view& map,
                     const Score& score, const problem& p, call_place place) {
  const int memory = block_memory(exec.policy().shared_memory);
  if constexpr (constexpr auto smaller = sm80::modest(P);
                may_lack_memory && smaller.bytes() < P.bytes()) {
    if (memory < P.bytes()) {
      return backward_passes<smaller>(exec, in, up, grad, mask, map, score, p, place);
    }
  }
  require_block_memory("backward", P.bytes(), memory);
  workspace& scratch = exec.workspace();
  cudaStream_t const stream = exec.stream();
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

  run_backward_kernel<P>(
      sm80::backward_arguments<P, T, Mask, Score>{in.q,
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
                                                  exec.policy().deterministic},
      exec.policy().kernel == kernel::portable || memory < block_memory(0), stream);

  if (!place.last) return;
  launch(&sm80::dq_kernel<sm80::dq_arguments<P, T>>, "the launch of sm80::dq_kernel", tiles,
         P.threads(), 0, stream, {grad.dq, dq_sums, p.scale, q_tiles, heads});
  if (grad.dsink) {
    launch(&sink_kernel<1024>, "the launch of sink_kernel", heads, 1024, 0, stream,
           {in.sink, grad.dsink, lse2, delta, static_cast<int>(p.batch), heads, q_tiles * P.tile.q,
            static_cast<int>(p.q_len), grad.dq.accumulate});
  }
}

} // namespace maskring::cuda::detail
