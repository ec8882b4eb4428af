// SPDX-License-Identifier: Apache-2.0
// The Hopper forward kernel, its launch, and what it can be asked for.
//
// To dispatch to it (cuda/forward.cuh does):
//
//   constexpr sm90::forward_policy policy = sm90::preferred_policy<Mask, Score>(128, 128);
//   if (sm90::supported(policy, in, out, p, map)) {
//     sm90::forward<policy>(in, out, mask, map, score, p, next_work, stream);
//   }
//
// `map` has tiles of `policy.tile` and lies in device memory, or has null rows: then every pair is
// visible and `mask` is never asked. `next_work` is one int of device memory, 0 before the first
// call and again after each.
#pragma once

#include <maskring/cuda/detail/ptx/register_limit.cuh>
#include <maskring/cuda/detail/sm90/arguments.cuh>
#include <maskring/cuda/detail/sm90/consumer.cuh>
#include <maskring/cuda/detail/sm90/mask_blocks.cuh>
#include <maskring/cuda/detail/sm90/policy.cuh>
#include <maskring/cuda/detail/sm90/producer.cuh>
#include <maskring/cuda/error.cuh>
#include <maskring/mask/concepts.hpp>

#include <cuda_runtime_api.h>

#include <type_traits>

namespace maskring::cuda::detail::sm90 {

template <class Arguments>
__global__ void __launch_bounds__(Arguments::policy.threads(), 1)
    forward_kernel(const __grid_constant__ Arguments args) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL) // empty for other architectures
  constexpr forward_policy P = Arguments::policy;
  extern __shared__ __align__(1024) std::byte memory[];
  auto& smem = *reinterpret_cast<forward_storage<P>*>(memory);
  const auto warp = [] { return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0); };

  if (threadIdx.x == 0) {
    ptx::prefetch(args.q);
    ptx::prefetch(args.k);
    ptx::prefetch(args.v);
    smem.init();
  }
  __syncthreads();

  if (warp() < 4) {
    ptx::release_registers<P.producer_registers()>();
    if (threadIdx.x == 0) produce(args, smem);
    if (threadIdx.x == 32) schedule(args, smem);
    if (threadIdx.x >= 32 * first_judge) judge_blocks(args, smem);
  } else {
    ptx::acquire_registers<P.consumer_registers()>();
    consumer<Arguments>{args, smem, warp() / 4 - 1}.run();
  }
#endif
}

/// Whether a mask without state lets late queries see all early keys, as causal ones do: query
/// tiles then have few edges, however tall they are.
template <class Mask>
inline constexpr bool sees_far =
    maskring::detail::surely_keeps<Mask, tile{.q = {1 << 20, (1 << 20) + 255}, .kv = {0, 255}}>;

/// The shape for these head dimensions, or one that is not valid() if this kernel has none.
///
/// Smaller dimensions use the next larger shape, the rest filled with zeros. Where score modifiers
/// take the special function unit, three groups of warps keep it busier than two. They also read
/// keys less often, which pays where the mask has few edges for their taller tiles to cross.
///
/// With `void` for the mask: for calls that keep the state of rows by query tiles, from the first
/// query on.
template <class Mask, class Score = score::none>
constexpr forward_policy preferred_policy(int qk_dim, int v_dim) {
  const int dim = qk_dim > v_dim ? qk_dim : v_dim;
  const bool special = uses_special_functions<Score> && local_score<Score>;
  // Tiles of three groups seldom divide a length: of the last one too little would be left.
  const bool from_end = !std::is_void_v<Mask>;
  const bool three_groups = special || (sees_far<Mask> && std::is_same_v<Score, score::none>);
  const bool tables = learnable_score<Score>; // whose entries need registers
  //                         qk   v    tile         stages, turns, overlap, early weights
  if (dim <= 64 && tables) return {64, 64, {192, 96, from_end}, 4, 2, true, false};
  if (dim <= 64) return {64, 64, {192, 128, from_end}, 4, 2, true, false, special ? 0 : 16};
  if (dim <= 96) return {96, 96, {128, tables ? 128 : 192}, 2, 2, true, false};
  if (dim <= 128 && three_groups) return {128, 128, {192, 80, from_end}, 2, 2, true, false};
  if (dim <= 128) return {128, 128, {128, 128}, 2, 2, true, true};
  if (dim <= 192 && v_dim <= 128) return {192, 128, {128, 128}, 2, 1, false, true};
  if (dim <= 192) return {192, 192, {128, 96}, 2, 1, false, true};
  if (dim <= 256) return {256, 256, {128, 64}, 2, 1, false, false};
  return {0, 0};
}

/// The shape for calls with this score modifier. Those that read tables need registers.
template <class Score>
constexpr forward_policy for_score(forward_policy policy) {
  policy.overlap = policy.overlap && !learnable_score<Score>;
  return policy;
}

/// Whether the kernel of shape `policy` computes this call: sm_90, dimensions, strides that the
/// copy engine and 16-byte stores accept, a positive scale, and a map with the policy's tiles.
template <class T, class O>
bool supported(forward_policy policy, const inputs<T>& in, const results<O>& out, const problem& p,
               const block_map_view& map) {
  int device = 0;
  int major = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) {
    return false;
  }
  const auto aligned = [](const auto& tensor, index_t bytes) {
    const index_t size = sizeof(*tensor.data);
    bool fits = reinterpret_cast<std::uintptr_t>(tensor.data) % bytes == 0;
    for (int d = 0; d < 3; ++d) {
      fits = fits && (tensor.extent(d) == 1 || tensor.stride(d) * size % bytes == 0);
    }
    return fits;
  };
  constexpr index_t most_work = (index_t{1} << 31) - (index_t{1} << 16);
  return major == 9 && policy.valid() && p.qk_dim <= policy.qk_dim && p.v_dim <= policy.v_dim &&
         p.v_dim % 8 == 0 && p.kv_len > 0 && p.scale > 0 && ptx::fits_tensor_map(in.q) &&
         ptx::fits_tensor_map(in.k) && ptx::fits_tensor_map(in.v) &&
         (sizeof(O) == 4 ? aligned(out.out, 8) : ptx::fits_tensor_map(view<const O, 4>{out.out})) &&
         (map.rows.offsets == nullptr || map.tile == policy.tile) &&
         (p.q_len / policy.tile.q + 1) * p.q_heads * p.batch < most_work;
}

/// out = softmax(score(scale · q kᵀ) where mask) v and its log-sum-exp, continuing from
/// `in.previous`; queued on `stream`. If it carries, `states` says which rows begin or end open.
/// @throws std::runtime_error if CUDA refuses the launch.
template <forward_policy Shape, bool Carries = false, class T, class O, class Mask, class Score>
void forward(const inputs<T>& in, const results<O>& out, const Mask& mask,
             const block_map_view& map, const Score& score, const problem& p, int* next_work,
             bool accompanied, cudaStream_t stream, const row_states& states = {}) {
  constexpr forward_policy P = for_score<Score>(Shape);
  static_assert(P.valid(), "maskring: no Hopper forward kernel of this shape");
  static_assert(sizeof(forward_storage<P>) <= 227 * 1024,
                "maskring: the shape needs more shared memory than a Hopper block has");
  static_assert(!Carries || !P.tile.from_end,
                "maskring: states of rows are kept by query tiles from the first query on");
  using arguments = forward_arguments<P, T, O, Mask, Score, Carries>;

  // Most steps of several see everything or nothing: all query tiles take as long.
  const bool alike = accompanied || Carries || map.rows.offsets == nullptr;
  int device = 0;
  int processors = 0;
  require_cuda(cudaGetDevice(&device), "cudaGetDevice");
  require_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
               "cudaDeviceGetAttribute");

  constexpr auto columns = [](operand_layout layout) { return layout.chunk_columns(); };
  CUtensorMap copied_out{};
  if constexpr (arguments::copies_out) {
    copied_out = ptx::make_tensor_map(view<const O, 4>{out.out}, 16, columns(output_layout(P)));
  }
  arguments args{ptx::make_tensor_map(in.q, P.tile.q, columns(query_layout(P))),
                 ptx::make_tensor_map(in.k, P.tile.kv, columns(key_layout(P))),
                 ptx::make_tensor_map(in.v, P.tile.kv, columns(value_layout(P))),
                 copied_out,
                 out.out,
                 out.lse,
                 in.previous,
                 in.sink,
                 map,
                 work_order::make(p, P.tile, processors, alike),
                 next_work,
                 mask,
                 score,
                 p.scale,
                 static_cast<int>(p.q_len),
                 static_cast<int>(p.kv_len),
                 static_cast<int>(p.group()),
                 static_cast<int>(P.tile.lead(p.q_len)),
                 states};
  const int blocks = std::min(processors, args.order.count());
  if (blocks == 0) return;

  const auto kernel = &forward_kernel<arguments>;
  constexpr std::size_t bytes = sizeof(forward_storage<P>);
  require_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(bytes)),
               "cudaFuncSetAttribute");
  kernel<<<blocks, P.threads(), bytes, stream>>>(args);
  require_cuda(cudaGetLastError(), "the launch of forward_kernel");
}

} // namespace maskring::cuda::detail::sm90
