// SPDX-License-Identifier: Apache-2.0
// The Hopper backward kernel, its launch, and what it can be asked for.
//
// A block owns a tile of keys at a time, as in the portable kernel, and takes the next one from a
// counter while it works. Of its first group of warps one thread loads and two warps keep the turns
// in which blocks add to dq; the other two groups compute.
#pragma once

#include <maskring/cuda/detail/device.cuh>
#include <maskring/cuda/detail/ptx/register_limit.cuh>
#include <maskring/cuda/detail/sm90/backward_consumer.cuh>
#include <maskring/cuda/detail/sm90/backward_producer.cuh>
#include <maskring/cuda/detail/sm90/target.cuh>

#include <algorithm>

namespace maskring::cuda::detail::sm90 {

template <class Arguments>
__global__ void __launch_bounds__(Arguments::policy.threads, 1)
    backward_kernel(const __grid_constant__ Arguments args) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL) // empty for other architectures
  constexpr backward_policy P = Arguments::policy;
  extern __shared__ __align__(1024) std::byte memory[];
  auto& smem = *reinterpret_cast<backward_storage<P>*>(memory);
  const auto warp = [] { return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0); };

  if (threadIdx.x == 0) {
    ptx::prefetch(args.q);
    ptx::prefetch(args.k);
    ptx::prefetch(args.v);
    ptx::prefetch(args.dout);
    smem.init();
  }
  __syncthreads();

  if (warp() < 4) {
    ptx::release_registers<P.producer_registers>();
    if (threadIdx.x == 0) load_unit_by_unit(args, smem);
    if (warp() == 1 && args.ordered) await_turns(args, smem);
    if (warp() == 2 && args.ordered) pass_turns_on(args, smem);
  } else {
    ptx::acquire_registers<P.consumer_registers>();
    backward_consumer<Arguments>{args, smem, warp() / 4 - 1}.run();
  }
#endif
}

/// Whether the kernel computes these calls: sm_90, dimensions, and strides that the copy engine
/// accepts.
template <sm80::backward_policy Like, class T, class Mask, class Score>
bool supported(backward_policy shape, const sm80::backward_arguments<Like, T, Mask, Score>& args) {
  return shape.valid() && args.q_len > 0 && args.kv_len > 0 && ptx::fits_tensor_map(args.q) &&
         ptx::fits_tensor_map(args.k) && ptx::fits_tensor_map(args.v) &&
         ptx::fits_tensor_map(args.dout) &&
         device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 && compiled_for_hopper();
}

/// dk, dv and the sums of dq, as by the portable kernel; queued on `stream`.
template <backward_policy P, sm80::backward_policy Like, class T, class Mask, class Score>
void backward(const sm80::backward_arguments<Like, T, Mask, Score>& args, cudaStream_t stream) {
  static_assert(P.dim == Like.dim && P.tile == Like.tile);
  constexpr auto bytes = static_cast<int>(sizeof(backward_storage<P>));
  static_assert(bytes <= 227 * 1024);
  const auto columns = [](operand_layout layout) { return layout.chunk_columns(); };
  const auto q_map = [&](const view<const T, 4>& tensor) {
    return ptx::make_tensor_map(tensor, P.tile.q, columns(P.q_layout()));
  };
  const auto k_map = [&](const view<const T, 4>& tensor) {
    return ptx::make_tensor_map(tensor, P.tile.kv, columns(P.k_layout()));
  };
  using arguments = backward_arguments<P, T, Mask, Score>;
  launch(&backward_kernel<arguments>, "the launch of sm90::backward_kernel",
         std::min(index_t{device_attribute(cudaDevAttrMultiProcessorCount)},
                  index_t{args.kv_tiles} * args.layers),
         P.threads, bytes, stream,
         {q_map(args.q),
          k_map(args.k),
          k_map(args.v),
          q_map(args.dout),
          args.dk,
          args.dv,
          args.map,
          args.mask,
          args.score,
          args.scale,
          args.scale * log2_e,
          args.lse2,
          args.delta,
          args.dq_sums,
          args.dq_done,
          args.next_unit,
          args.layers,
          args.heads,
          args.kv_heads,
          args.group,
          args.q_len,
          args.kv_len,
          args.q_tiles,
          args.kv_tiles,
          args.q_tiles_per_map_tile,
          args.kv_tiles_per_map_tile,
          args.ordered});
}

} // namespace maskring::cuda::detail::sm90
