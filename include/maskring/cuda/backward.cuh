// SPDX-License-Identifier: Apache-2.0
// The backward pass on the device.
#pragma once

#include <maskring/cuda/detail/backward_passes.cuh>
#include <maskring/cuda/detail/dispatch.cuh>
#include <maskring/cuda/detail/fp32/launch.cuh>
#include <maskring/cuda/executor.cuh>

namespace maskring {

namespace cuda::detail {

template <class Dim, class Executor, class T, class O, class G, class Mask, class Score>
void run_backward(const Executor& exec, const saved<T, O>& in, const upstream<T>& up,
                  const gradients<G>& grad, const Mask& mask, const block_map_view* map,
                  const Score& score, const problem& p, accumulation accumulate) {
  const auto portable = [&](const block_map_view& tiles) {
    if constexpr (!std::is_same_v<T, float>) {
      constexpr auto shape = sm80::backward_shape(Dim::qk, Dim::v);
      check_tiles("backward", tiles, shape.tile);
      const gradient_stores to{row_store::of(grad.dq, accumulate.queries),
                               row_store::of(grad.dk, accumulate.keys),
                               row_store::of(grad.dv, accumulate.keys), grad.dsink};
      backward_passes<shape>(exec, in, up, to, mask, tiles, score, p, call_place{});
    } else if (exec.policy().float_math == float_math::tf32) {
      fp32::backward<float_math::tf32, Dim::qk, Dim::v>(in, up, grad, mask, tiles, score, p,
                                                        accumulate, exec.policy().deterministic,
                                                        exec.workspace(), exec.stream());
    } else {
      fp32::backward<float_math::ieee, Dim::qk, Dim::v>(in, up, grad, mask, tiles, score, p,
                                                        accumulate, exec.policy().deterministic,
                                                        exec.workspace(), exec.stream());
    }
  };
  if (map != nullptr) {
    portable(*map);
  } else {
    with_block_map("backward", exec, mask, p, {128, 128}, portable);
  }
}

template <class Dims, class T, class O, class D, class G, class Mask, class Score>
void backward(const executor<Dims>& exec, const saved<T, O>& given, const upstream<D>& above,
              const gradients<G>& wanted, const Mask& mask, const block_map_view* map,
              const Score& score, const options& opt, accumulation accumulate) {
  static_assert(std::is_same_v<T, D>,
                "maskring: on the device dout has the element type of q, k, v");
  saved in{as_element(given.q), as_element(given.k), as_element(given.v), as_element(given.out),
           given.lse};
  in.sink = given.sink;
  upstream up{as_element(above.dout), above.dlse};
  gradients grad{as_element(wanted.dq), as_element(wanted.dk), as_element(wanted.dv)};
  grad.dsink = wanted.dsink;
  const problem p = maskring::detail::check_backward(in, up, grad, opt);
  if (map != nullptr) check_map("backward", *map, p);
  if (p.batch * p.kv_heads == 0) return;
  with_head_dim("backward", p, Dims{}, [&](auto dim) {
    run_backward<decltype(dim)>(exec, in, up, grad, mask, map, score, p, accumulate);
  });
}

/// One of several calls of 16-bit elements over the same queries and other keys, on one workspace
/// that serves nothing else between them. dk and dv are added to if `adds`; dq, and the sink's
/// gradient, are written by the last call, or added to with `opt.accumulate`.
template <class Dims, class T, class O, class D, class G, class Mask, class Score>
void backward_step(const executor<Dims>& exec, const saved<T, O>& given, const upstream<D>& above,
                   const view<G, 4>& dq, const gradients<float>& keys, const Mask& mask,
                   const block_map_view& map, const Score& score, const options& opt, bool adds,
                   call_place place) {
  static_assert(std::is_same_v<T, D>,
                "maskring: on the device dout has the element type of q, k, v");
  saved in{as_element(given.q), as_element(given.k), as_element(given.v), as_element(given.out),
           given.lse};
  in.sink = given.sink;
  const upstream up{as_element(above.dout), above.dlse};
  const problem p = maskring::detail::check_inputs("backward", in, opt);
  check_map("backward", map, p);
  if (p.batch * p.kv_heads == 0) return;
  const gradient_stores to{row_store::of(as_element(dq), opt.accumulate),
                           row_store::of(keys.dk, adds), row_store::of(keys.dv, adds), keys.dsink};
  with_head_dim("backward", p, Dims{}, [&](auto dim) {
    constexpr auto shape = sm80::backward_shape(decltype(dim)::qk, decltype(dim)::v);
    check_tiles("backward", map, shape.tile);
    backward_passes<shape>(exec, in, up, to, mask, map, score, p, place);
  });
}

} // namespace cuda::detail

/// The gradients of Σ dout·out + Σ dlse·lse with respect to q, k, v and the sink logits, from what
/// the forward pass saved, on the device; `map` as for forward(). With `opt.accumulate` they are
/// added to what the (float) tensors hold.
///
/// The same bits each time, unless the executor's policy says deterministic = false. The work is
/// queued on the executor's stream; it needs a workspace of about 4·(dim + 2) bytes for each query
/// of each head.
/// @throws std::invalid_argument naming the argument that does not fit the others; cuda::error.
template <class Dims, class T, class O, class D, class G, mask_mod Mask,
          score_mod Score = score::none>
void backward(const cuda::executor<Dims>& exec, const saved<T, O>& in, const upstream<D>& up,
              const gradients<G>& grad, const Mask& mask, const block_map_view& map,
              const Score& score = {}, const options& opt = {}) {
  cuda::detail::backward(exec, in, up, grad, mask, &map, score, opt,
                         {opt.accumulate, opt.accumulate});
}

/// The same, and builds the block map first, for which it waits for the stream.
template <class Dims, class T, class O, class D, class G, mask_mod Mask,
          score_mod Score = score::none>
void backward(const cuda::executor<Dims>& exec, const saved<T, O>& in, const upstream<D>& up,
              const gradients<G>& grad, const Mask& mask, const Score& score = {},
              const options& opt = {}) {
  cuda::detail::backward(exec, in, up, grad, mask, nullptr, score, opt,
                         {opt.accumulate, opt.accumulate});
}

} // namespace maskring
