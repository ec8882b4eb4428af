// SPDX-License-Identifier: Apache-2.0
// Attention on the host: the executor and the calls.
#pragma once

#include <maskring/block/build.hpp>
#include <maskring/cpu/backward.hpp>
#include <maskring/cpu/forward.hpp>

namespace maskring {

/// Runs attention on the processor with at most `threads` threads; 0 stands for one a processor.
/// Its calls return when the work is done, and may be made from several threads at once. Results do
/// not depend on the number of threads, to the last bit.
struct host {
  int threads = 0;
  cpu::isa level = cpu::best_isa(); ///< the instruction set; the processor must have it

  host() = default;
  explicit host(int most_threads) : threads{most_threads} {}
  host(int most_threads, cpu::isa instructions) : threads{most_threads}, level{instructions} {}
};

namespace detail {

inline void check_host(const char* call, const host& executor) {
  require(executor.threads >= 0, call, ": host has ", executor.threads,
          " threads, expected 0 or more (0: one a processor)");
  require(executor.level <= cpu::best_isa(), call,
          ": host asks for an instruction set that this processor does not have");
}

} // namespace detail

/// Attention under a mask whose block map is there already (block_map or block_map_view, in host
/// memory, made from the same mask); the map's tile takes the place of the options'.
///
///   out = softmax(score(scale·q·kᵀ) where mask, else −inf)·v,   lse = log Σ exp(score)
///
/// Continues from `in.previous` where given; its tensors may be those of `out`. `open` says how
/// rows stand between the calls of a series.
/// @throws std::invalid_argument naming the argument that does not fit the others.
template <element T, class O, mask_mod Mask, score_mod Score = score::none>
void forward(const host& executor, const inputs<T>& in, const results<O>& out, const Mask& mask,
             const block_map_view& map, const Score& score = {}, const options& opt = {},
             const open_rows& open = {}) {
  const problem p = detail::check_forward(in, out, opt);
  detail::check_open(open, in, out, p);
  detail::check_host("forward", executor);
  cpu::detail::check_map("forward", map, p);
  cpu::forward_pass<T, O, Mask, Score>{p, in, out, mask, map, score, executor.level, open}.run(
      executor.threads);
}

/// The same, and builds the block map first.
template <element T, class O, mask_mod Mask, score_mod Score = score::none>
void forward(const host& executor, const inputs<T>& in, const results<O>& out, const Mask& mask,
             const Score& score = {}, const options& opt = {}) {
  const problem p = detail::check_forward(in, out, opt);
  const block_map map = make_block_map(mask, {p.batch, p.q_heads, p.q_len, p.kv_len}, opt.tile);
  forward(executor, in, out, mask, map.view(), score, opt);
}

/// The gradients of Σ dout·out + Σ dlse·lse with respect to q, k, v and the sink logits, from what
/// the forward pass saved. With `opt.accumulate` they are added to what the tensors hold.
/// @throws std::invalid_argument naming the argument that does not fit the others.
template <element T, class O, class D, class G, mask_mod Mask, score_mod Score = score::none>
void backward(const host& executor, const saved<T, O>& in, const upstream<D>& up,
              const gradients<G>& grad, const Mask& mask, const block_map_view& map,
              const Score& score = {}, const options& opt = {}) {
  const problem p = detail::check_backward(in, up, grad, opt);
  detail::check_host("backward", executor);
  cpu::detail::check_map("backward", map, p);
  cpu::backward_pass<T, O, D, G, Mask, Score>{p,    in,  up,    grad,          opt.accumulate,
                                              mask, map, score, executor.level}
      .run(executor.threads);
}

/// The same, and builds the block map first.
template <element T, class O, class D, class G, mask_mod Mask, score_mod Score = score::none>
void backward(const host& executor, const saved<T, O>& in, const upstream<D>& up,
              const gradients<G>& grad, const Mask& mask, const Score& score = {},
              const options& opt = {}) {
  const problem p = detail::check_backward(in, up, grad, opt);
  const block_map map = make_block_map(mask, {p.batch, p.q_heads, p.q_len, p.kv_len}, opt.tile);
  backward(executor, in, up, grad, mask, map.view(), score, opt);
}

} // namespace maskring
