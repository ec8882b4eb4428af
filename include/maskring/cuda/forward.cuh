// SPDX-License-Identifier: Apache-2.0
// The forward pass on the device.
#pragma once

#include <maskring/cuda/detail/dispatch.cuh>
#include <maskring/cuda/detail/fp32/launch.cuh>
#include <maskring/cuda/detail/packed_heads.cuh>
#include <maskring/cuda/detail/sm80/forward.cuh>
#include <maskring/cuda/detail/sm90/forward.cuh>
#include <maskring/cuda/detail/sm90/target.cuh>
#include <maskring/cuda/executor.cuh>

#include <optional>

namespace maskring {

namespace cuda::detail {

template <class Dim, class Executor, class T, class O, class Mask, class Score>
void run_forward(const Executor& exec, const inputs<T>& in, const results<O>& out, const Mask& mask,
                 const block_map_view* map, const Score& score, const problem& p) {
  using Dims = typename Executor::dims;
  const auto portable = [&](const block_map_view& tiles) {
    if constexpr (!std::is_same_v<T, float>) {
      constexpr auto shape = sm80::forward_shape(Dim::qk, Dim::v);
      check_tiles("forward", tiles, shape.tile);
      with_packed_heads<Dims>(in, out, mask, tiles, score, p, [&](const auto&... call) {
        sm80::forward<shape>(call..., block_memory(exec.policy().shared_memory), exec.stream());
      });
    } else if (exec.policy().float_math == float_math::tf32) {
      fp32::forward<float_math::tf32, Dim::qk, Dim::v>(in, out, mask, tiles, score, p,
                                                       exec.stream());
    } else {
      fp32::forward<float_math::ieee, Dim::qk, Dim::v>(in, out, mask, tiles, score, p,
                                                       exec.stream());
    }
  };
  const bool hopper_only = exec.policy().kernel == kernel::hopper;
  if constexpr (!std::is_same_v<T, float> && sm90::may_target_hopper) {
    const bool wanted = exec.policy().kernel != kernel::portable;
    const auto computed = [&](auto shape) {
      constexpr sm90::forward_policy policy = shape();
      if (!wanted ||
          !sm90::supported(policy, in, out, p, map != nullptr ? *map : block_map_view{}) ||
          !sm90::compiled_for_hopper()) {
        return false;
      }
      const auto hopper = [&](const block_map_view& tiles) {
        exec.workspace().reserve(1, exec.stream());
        with_packed_heads<Dims>(in, out, mask, tiles, score, p, [&](const auto&... call) {
          sm90::forward<policy>(call..., exec.workspace().counters(), exec.policy().accompanied,
                                exec.stream());
        });
      };
      if (map != nullptr) {
        hopper(*map);
      } else {
        with_block_map("forward", exec, mask, p, policy.tile, hopper);
      }
      return true;
    };
    constexpr auto best = [] { return sm90::preferred_policy<Mask, Score>(Dim::qk, Dim::v); };
    constexpr auto plain = [] { return sm90::preferred_policy<Mask>(Dim::qk, Dim::v); };
    constexpr auto any = [] { return sm90::preferred_policy<void>(Dim::qk, Dim::v); };
    if (computed(best)) return;
    // Maps may have been made for calls without the modifier, or with the tiles that they have
    // where none are asked for.
    if constexpr (best().tile != plain().tile) {
      if (map != nullptr && computed(plain)) return;
    }
    if constexpr (any().tile == tile_shape{} && any().tile != best().tile &&
                  any().tile != plain().tile && !std::is_same_v<Mask, mask::full>) {
      if (map != nullptr && computed(any)) return;
    }
  }
  maskring::detail::require(!hopper_only,
                            "forward: kernel is hopper, which cannot compute this call (device, "
                            "element type, strides, or tiles other than cuda::forward_tile)");
  if (map != nullptr) {
    portable(*map);
  } else {
    with_block_map("forward", exec, mask, p, {128, 128}, portable);
  }
}

template <class Dims, class T, class O, class Mask, class Score>
void forward(const executor<Dims>& exec, const inputs<T>& given, const results<O>& wanted,
             const Mask& mask, const block_map_view* map, const Score& score, const options& opt) {
  using element = typename element_of<T>::type;
  inputs<element> in{as_element(given.q), as_element(given.k), as_element(given.v)};
  in.sink = given.sink;
  in.previous = given.previous;
  const results out{as_element(wanted.out), wanted.lse};
  const problem p = maskring::detail::check_forward(in, out, opt);
  if (map != nullptr) check_map("forward", *map, p);
  if (p.batch * p.q_heads * p.q_len == 0) return;
  // A mask that keeps everything needs no map; without one any kernel's tiles do.
  if (std::is_same_v<Mask, mask::full>) map = nullptr;
  with_head_dim("forward", p, Dims{},
                [&](auto dim) { run_forward<decltype(dim)>(exec, in, out, mask, map, score, p); });
}

/// The tile of block maps for forward_step() of such calls; nothing where these are not to be had.
template <class Dims, class T, class O>
std::optional<tile_shape> step_tile(const executor<Dims>& exec, const inputs<T>& given,
                                    const results<O>& wanted) {
  std::optional<tile_shape> tile;
  if constexpr (!std::is_same_v<T, float> && sm90::may_target_hopper) {
    const inputs in{as_element(given.q), as_element(given.k), as_element(given.v)};
    const results out{as_element(wanted.out), wanted.lse};
    const problem p = maskring::detail::check_inputs("forward", in, {});
    with_head_dim("forward", p, Dims{}, [&](auto dim) {
      constexpr auto shape = sm90::preferred_policy<void>(decltype(dim)::qk, decltype(dim)::v);
      if (exec.policy().kernel != kernel::portable && sm90::compiled_for_hopper() &&
          sm90::supported(shape, in, out, p, block_map_view{})) {
        tile = shape.tile;
      }
    });
  }
  return tile;
}

/// As forward(), where some or all rows are open before or after; `map` as step_tile() says.
template <class Dims, class T, class O, class Mask, class Score>
void forward_step(const executor<Dims>& exec, const inputs<T>& given, const results<O>& wanted,
                  const Mask& mask, const block_map_view& map, const Score& score,
                  const options& opt, const row_states& states) {
  inputs in{as_element(given.q), as_element(given.k), as_element(given.v)};
  in.sink = given.sink;
  in.previous = given.previous;
  const results out{as_element(wanted.out), wanted.lse};
  const problem p = maskring::detail::check_forward(in, out, opt);
  check_map("forward", map, p);
  if constexpr (!std::is_same_v<T, float> && sm90::may_target_hopper) {
    with_head_dim("forward", p, Dims{}, [&](auto dim) {
      constexpr auto shape = sm90::preferred_policy<void>(decltype(dim)::qk, decltype(dim)::v);
      maskring::detail::require(sm90::supported(shape, in, out, p, map),
                                "forward: no step of this call, or its map has other tiles");
      exec.workspace().reserve(1, exec.stream());
      sm90::forward<shape, true>(in, out, mask, map, score, p, exec.workspace().counters(),
                                 exec.policy().accompanied, exec.stream(), states);
    });
  }
}

} // namespace cuda::detail

namespace cuda {

/// The tile for block maps of forward calls with this mask and these head dimensions: the one that
/// the fastest kernel on the current device takes. The portable kernel takes any multiple of
/// 128 × 128 counted from the first query, as do all backward kernels.
///
/// Calls with a score modifier take maps made without regard to it, but those of
/// `uses_special_functions` and those that read tables are faster if it is named.
template <class Mask, class Score = score::none, class Dims>
tile_shape forward_tile(const executor<Dims>& exec, index_t qk_dim, index_t v_dim) {
  tile_shape tile{128, 128};
  if constexpr (detail::sm90::may_target_hopper) {
    problem p;
    p.qk_dim = qk_dim;
    p.v_dim = v_dim;
    detail::with_head_dim("forward_tile", p, Dims{}, [&](auto dim) {
      constexpr auto shape =
          detail::sm90::preferred_policy<Mask, Score>(decltype(dim)::qk, decltype(dim)::v);
      if (exec.policy().kernel != kernel::portable && shape.valid() &&
          detail::device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
          detail::sm90::compiled_for_hopper()) {
        tile = shape.tile;
      }
    });
  }
  return tile;
}

/// The same for a call with these tensors, whose strides may leave it to the portable kernel.
template <class Mask, class Score = score::none, class Dims, class T, class O>
tile_shape forward_tile(const executor<Dims>& exec, const inputs<T>& in, const results<O>& out) {
  tile_shape tile{128, 128};
  if constexpr (!std::is_same_v<T, float> && detail::sm90::may_target_hopper) {
    const inputs q_k_v{detail::as_element(in.q), detail::as_element(in.k),
                       detail::as_element(in.v)};
    const results to{detail::as_element(out.out), out.lse};
    const problem p = maskring::detail::check_inputs("forward_tile", in, {});
    detail::with_head_dim("forward_tile", p, Dims{}, [&](auto dim) {
      constexpr auto shape =
          detail::sm90::preferred_policy<Mask, Score>(decltype(dim)::qk, decltype(dim)::v);
      if (exec.policy().kernel != kernel::portable && detail::sm90::compiled_for_hopper() &&
          detail::sm90::supported(shape, q_k_v, to, p, block_map_view{})) {
        tile = shape.tile;
      }
    });
  }
  return tile;
}

} // namespace cuda

/// Attention on the device under a mask whose block map is there already (cuda::make_block_map,
/// from the same mask, with tiles as cuda::forward_tile says or multiples of 128 × 128).
///
///   out = softmax(score(scale·q·kᵀ) where mask, else −inf)·v,   lse = log Σ exp(score)
///
/// All tensors lie in device memory; elements are float, half (float16 or __half) or bfloat16
/// (bfloat16 or __nv_bfloat16). Continues from `in.previous` where given; its tensors may be those
/// of `out`. The work is queued on the executor's stream.
///
/// Short queries of grouped heads (16-bit elements; the heads that share keys have all their
/// queries within one query tile of a map without heads) are computed together where one stride
/// leads from row to row: with one query, with heads before queries in memory, or with one key
/// head. cuda::unpacked() leaves that out.
/// @throws std::invalid_argument naming the argument that does not fit the others; cuda::error.
template <class Dims, class T, class O, mask_mod Mask, score_mod Score = score::none>
void forward(const cuda::executor<Dims>& exec, const inputs<T>& in, const results<O>& out,
             const Mask& mask, const block_map_view& map, const Score& score = {},
             const options& opt = {}) {
  cuda::detail::forward(exec, in, out, mask, &map, score, opt);
}

/// The same, and builds the block map first, for which it waits for the stream; its tile is the
/// kernel's choice. mask::full needs no map.
template <class Dims, class T, class O, mask_mod Mask, score_mod Score = score::none>
void forward(const cuda::executor<Dims>& exec, const inputs<T>& in, const results<O>& out,
             const Mask& mask, const Score& score = {}, const options& opt = {}) {
  cuda::detail::forward(exec, in, out, mask, nullptr, score, opt);
}

} // namespace maskring
