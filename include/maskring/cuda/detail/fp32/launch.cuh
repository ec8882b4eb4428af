// SPDX-License-Identifier: Apache-2.0
// Choosing the shapes of the kernels for fp32 elements, and launching them.
#pragma once

#include <maskring/cuda/detail/device.cuh>
#include <maskring/cuda/detail/fp32/backward_kernel.cuh>
#include <maskring/cuda/detail/fp32/forward_kernel.cuh>
#include <maskring/cuda/detail/row_sums.cuh>

#include <algorithm>

namespace maskring::cuda::detail::fp32 {

/// Head dimensions that the kernels are made for are multiples of 64.
constexpr int padded_dim(int dim) { return (dim + 63) / 64 * 64; }

template <float_math Math, int Qk, int V, class Mask, class Score>
void forward(const inputs<float>& in, const results<float>& out, const Mask& mask,
             const block_map_view& map, const Score& score, const problem& p, cudaStream_t stream) {
  constexpr forward_policy P{padded_dim(Qk), padded_dim(V), {64, 32}, Math};
  check_tiles("forward", map, P.tile);
  using arguments = forward_arguments<P, Mask, Score>;
  const int q_tiles = static_cast<int>((p.q_len + P.tile.q - 1) / P.tile.q);
  launch(&forward_kernel<arguments>, "the launch of fp32::forward_kernel",
         q_tiles * p.q_heads * p.batch, block_threads, P.bytes(), stream,
         arguments{in.q,
                   in.k,
                   in.v,
                   {row_store::of(out.out), out.lse, in.previous, in.sink},
                   map,
                   mask,
                   score,
                   p.scale,
                   q_tiles,
                   static_cast<int>((p.kv_len + P.tile.kv - 1) / P.tile.kv),
                   map.tile.kv / P.tile.kv,
                   static_cast<int>(p.q_heads),
                   static_cast<int>(p.group()),
                   static_cast<int>(p.q_len),
                   static_cast<int>(p.kv_len),
                   has_vectors(in.q),
                   has_vectors(in.k),
                   has_vectors(in.v)});
}

template <float_math Math, int Qk, int V, class Mask, class Score>
void backward(const saved<float, float>& in, const upstream<float>& up,
              const gradients<float>& grad, const Mask& mask, const block_map_view& map,
              const Score& score, const problem& p, accumulation accumulate, bool ordered,
              workspace& scratch, cudaStream_t stream) {
  constexpr backward_policy P{padded_dim(Qk), padded_dim(V), {32, 32}, Math};
  check_tiles("backward", map, P.tile);
  const int q_tiles = static_cast<int>((p.q_len + P.tile.q - 1) / P.tile.q);
  const int kv_tiles = static_cast<int>((p.kv_len + P.tile.kv - 1) / P.tile.kv);
  const int heads = static_cast<int>(p.q_heads);
  const index_t tiles = index_t{q_tiles} * heads * p.batch;
  placement placed;
  const std::size_t lse2_at = placed.add<float>(tiles * P.tile.q);
  const std::size_t delta_at = placed.add<float>(tiles * P.tile.q);
  const std::size_t counters_at = placed.add<int>(tiles + 1);
  scratch.reserve(placed.bytes(), stream);
  float* const lse2 = scratch.at<float>(lse2_at);
  float* const delta = scratch.at<float>(delta_at);
  int* const counters = scratch.at<int>(counters_at);

  require_cuda(cudaMemsetAsync(counters, 0, placed.bytes() - counters_at, stream),
               "cudaMemsetAsync");
  if (!accumulate.queries) {
    const index_t rows = p.batch * p.q_heads * p.q_len;
    launch(&clear_kernel<256>, "the launch of fp32::clear_kernel", std::min<index_t>(rows, 1 << 16),
           256, 0, stream, grad.dq);
  }
  sum_rows(up.dout, in.out, in.lse, up.dlse, q_tiles * P.tile.q, lse2, delta, stream);
  using arguments = backward_arguments<P, Mask, Score>;
  launch(&backward_kernel<arguments>, "the launch of fp32::backward_kernel",
         kv_tiles * p.kv_heads * p.batch, block_threads, P.bytes(), stream,
         arguments{in.q,
                   in.k,
                   in.v,
                   up.dout,
                   grad.dq,
                   row_store::of(grad.dk, accumulate.keys),
                   row_store::of(grad.dv, accumulate.keys),
                   map,
                   mask,
                   score,
                   p.scale,
                   lse2,
                   delta,
                   counters + 1,
                   counters,
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
  if (grad.dsink) {
    launch(&sink_kernel<1024>, "the launch of sink_kernel", heads, 1024, 0, stream,
           {in.sink, grad.dsink, lse2, delta, static_cast<int>(p.batch), heads, q_tiles * P.tile.q,
            static_cast<int>(p.q_len), accumulate.queries});
  }
}

} // namespace maskring::cuda::detail::fp32
