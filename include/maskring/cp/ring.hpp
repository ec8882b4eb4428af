// SPDX-License-Identifier: Apache-2.0
// Ring attention: keys and values travel from rank to rank while each rank works on what it holds.
#pragma once

#include <maskring/cp/detail/ring_backward.hpp>
#include <maskring/cp/detail/ring_forward.hpp>

namespace maskring::cp {

/// Attention over sequences that are split over the ranks of `comm`; each rank calls it with its
/// own shards and gets its own shards of the results.
///
/// ```cpp
/// cp::ring ring{comm, {.batch = 1, .q_heads = 8, .kv_heads = 2, .qk_dim = 64, .v_dim = 64},
///               shard::zigzag{tokens, comm.size()}, mask::causal{}};
/// ring.forward(host(), inputs{q, k, v}, results{out, lse});
/// ring.backward(host(), saved{q, k, v, out, lse}, upstream{dout}, gradients{dq, dk, dv});
/// ```
///
/// The mask and the score modifier see global indices. Only the keys that a rank needs are sent to
/// it (cp::plan says by whom), in the inputs' type and never with repeated heads, while it computes
/// on those before, with the queries that see something of them; partial results continue in fp32
/// in the attention call itself and are rounded once. In the backward pass the keys travel again;
/// each rank sends its fp32 share of dk and dv straight to the shard's owner, which adds them in a
/// fixed order. Where ranks share memory they read, and add to, one another's tensors where they
/// lie, taking turns. All ranks make the same calls in the same order. Block maps and buffers are
/// made at the first call of each pass and kept: two shards of keys and values, the state in fp32
/// (of a forward pass the output, of a backward pass the gradients), and gradients on their way
/// (see smallest_cut()).
///
/// Method: H. Liu et al., Ring Attention with Blockwise Transformers, 2023; the carried softmax
/// state is that of M. Milakov and N. Gimelshein, 2018.
template <class Comm, class QLayout, class KvLayout, class Mask, class Score>
class ring : public detail::ring_backward<
                 detail::ring_forward<detail::ring_steps<Comm, QLayout, KvLayout, Mask, Score>>> {
  using base = detail::ring_backward<
      detail::ring_forward<detail::ring_steps<Comm, QLayout, KvLayout, Mask, Score>>>;

public:
  /// @param comm outlives the driver.
  /// @param opt `scale` and `tile` of the attention calls; with `accumulate`, backward adds to the
  ///        gradients, which must then be floats.
  /// @throws std::invalid_argument on every rank if ranks were given different sizes, layouts or
  ///         masks, or sizes that do not fit together.
  ring(Comm& comm, const shape& sizes, const shards<QLayout, KvLayout>& split, const Mask& mask,
       const Score& score = {}, const options& opt = {})
      : base{comm, sizes, split, mask, score, opt, [&] { return cp::plan{mask, sizes, split}; }} {}

  /// With a plan made before, from a mask that the host can ask where `mask` itself reads the
  /// memory of a device.
  ring(Comm& comm, const cp::plan& known, const shape& sizes,
       const shards<QLayout, KvLayout>& split, const Mask& mask, const Score& score = {},
       const options& opt = {})
      : base{comm, sizes, split, mask, score, opt, [&] { return known; }} {}

  savings saved_work(std::size_t element_bytes) const {
    return this->plan_.saved(this->sizes_, element_bytes);
  }

  /// Where keys are sent, a backward step is computed in up to four calls, so that the gradients on
  /// their way take a fourth of the memory; but in none that has less rows of keys, in all heads
  /// together, than this, since small calls leave parts of a device idle. The same on all ranks.
  void smallest_cut(index_t rows) { smallest_cut_ = rows; }

  /// out and lse of the local queries over the keys of all ranks. `in.sink` counts once.
  /// @throws std::invalid_argument before anything moves if a local tensor has other sizes.
  template <class Exec, class T, class O>
  void forward(const Exec& exec, const inputs<T>& in, const results<O>& out) {
    base::template require_backend<Exec>();
    this->require_local(base::name, maskring::detail::check_forward(in, out, this->options_));
    this->template require_same_element<T>(base::name);
    this->run_forward(exec, in, out);
  }

  /// The gradients of the local queries, keys and values, from all ranks' queries. `grad.dsink` is
  /// this rank's share: the gradient of a sink that all ranks have is the sum over ranks.
  /// @throws std::invalid_argument before anything moves if a local tensor has other sizes.
  template <class Exec, class T, class O, class D, class G>
  void backward(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
                const gradients<G>& grad) {
    base::template require_backend<Exec>();
    this->require_local(base::name, maskring::detail::check_backward(in, up, grad, this->options_));
    this->template require_same_element<T>(base::name);
    this->run_backward(exec, in, up, grad, smallest_cut_);
  }

private:
  index_t smallest_cut_ = 1 << 16; // half a thousand tiles of keys
};

template <class Comm, shard::layout Layout, class Mask, class Score = score::none>
ring(Comm&, shape, Layout, Mask, Score = {}, options = {})
    -> ring<Comm, Layout, Layout, Mask, Score>;
template <class Comm, class Q, class Kv, class Mask, class Score = score::none>
ring(Comm&, shape, shards<Q, Kv>, Mask, Score = {}, options = {}) -> ring<Comm, Q, Kv, Mask, Score>;
template <class Comm, shard::layout Layout, class Mask, class Score = score::none>
ring(Comm&, plan, shape, Layout, Mask, Score = {}, options = {})
    -> ring<Comm, Layout, Layout, Mask, Score>;
template <class Comm, class Q, class Kv, class Mask, class Score = score::none>
ring(Comm&, plan, shape, shards<Q, Kv>, Mask, Score = {}, options = {})
    -> ring<Comm, Q, Kv, Mask, Score>;

} // namespace maskring::cp
