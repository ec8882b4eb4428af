// SPDX-License-Identifier: Apache-2.0
// All-gather attention: each rank collects the keys that its queries see, then computes once.
#pragma once

#include <maskring/cp/detail/gather_copies.hpp>
#include <maskring/cp/detail/gather_in_place.hpp>

namespace maskring::cp {

/// Attention over sequences that are split over the ranks of `comm`, like cp::ring and called like
/// it, but with one attention call per pass.
///
/// Each rank sends every other rank the interval of its keys and values that the plan says is
/// needed there, and lays out what it gets in global order without the longest stretch that it does
/// not need, so that the mask runs over consecutive keys with at most one leap. In the backward
/// pass the keys are gathered again and each rank's fp32 shares of dk and dv return to their
/// owners, which add them in a fixed order. Memory grows with the keys that a rank sees; the ring's
/// does not, but it makes calls for each shard.
///
/// Where ranks share memory and need the same keys there is one copy of keys and values, in global
/// order, for all of them: each rank adds its own, and in the backward pass all add their shares of
/// dk and dv to one sum of each, taking turns.
///
/// Method: the all-gather of Llama 3 (A. Dubey et al., 2024, section 3.3.2), with a plan.
template <class Comm, class QLayout, class KvLayout, class Mask, class Score>
class all_gather
    : public detail::gather_copies<
          detail::gather_in_place<detail::gather_base<Comm, QLayout, KvLayout, Mask, Score>>> {
  using base = detail::gather_copies<
      detail::gather_in_place<detail::gather_base<Comm, QLayout, KvLayout, Mask, Score>>>;

public:
  /// As cp::ring.
  all_gather(Comm& comm, const shape& sizes, const shards<QLayout, KvLayout>& split,
             const Mask& mask, const Score& score = {}, const options& opt = {})
      : base{comm, sizes, split, mask, score, opt, [&] { return cp::plan{mask, sizes, split}; }} {}
  all_gather(Comm& comm, const cp::plan& known, const shape& sizes,
             const shards<QLayout, KvLayout>& split, const Mask& mask, const Score& score = {},
             const options& opt = {})
      : base{comm, sizes, split, mask, score, opt, [&] { return known; }} {}

  savings saved_work(std::size_t element_bytes) const {
    return this->plan_.saved(this->sizes_, element_bytes);
  }

  /// As cp::ring::forward.
  template <class Exec, class T, class O>
  void forward(const Exec& exec, const inputs<T>& in, const results<O>& out) {
    base::template require_backend<Exec>();
    this->require_local(base::name, maskring::detail::check_forward(in, out, this->options_));
    this->template require_same_element<T>(base::name);
    const auto [k, v] =
        this->in_place_ ? this->shared_keys(exec, in.k, in.v) : this->copied_keys(exec, in.k, in.v);
    inputs<T> now{in.q, k, v};
    now.sink = in.sink;
    now.previous = in.previous;
    this->recorder_.compute(exec, {"forward"}, [&] {
      const auto mask = this->local_mask();
      backend<Exec>::forward(among_others(exec), now, out, mask,
                             this->forward_map(exec, now, out, mask), this->local_score(),
                             this->options_);
    });
    if (this->in_place_) this->meet(exec);
  }

  /// As cp::ring::backward.
  template <class Exec, class T, class O, class D, class G>
  void backward(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
                const gradients<G>& grad) {
    base::template require_backend<Exec>();
    this->require_local(base::name, maskring::detail::check_backward(in, up, grad, this->options_));
    this->template require_same_element<T>(base::name);
    if (this->in_place_) {
      this->backward_in_place(exec, in, up, grad);
    } else {
      this->backward_by_copies(exec, in, up, grad);
    }
  }

private:
  /// Where ranks share a device, each one's call is followed by others'.
  template <class Exec>
  Exec among_others(const Exec& exec) const {
    if constexpr (requires { backend<Exec>::among_others(exec); }) {
      if (this->in_place_) return backend<Exec>::among_others(exec);
    }
    return exec;
  }
};

template <class Comm, shard::layout Layout, class Mask, class Score = score::none>
all_gather(Comm&, shape, Layout, Mask, Score = {}, options = {})
    -> all_gather<Comm, Layout, Layout, Mask, Score>;
template <class Comm, class Q, class Kv, class Mask, class Score = score::none>
all_gather(Comm&, shape, shards<Q, Kv>, Mask, Score = {}, options = {})
    -> all_gather<Comm, Q, Kv, Mask, Score>;
template <class Comm, shard::layout Layout, class Mask, class Score = score::none>
all_gather(Comm&, plan, shape, Layout, Mask, Score = {}, options = {})
    -> all_gather<Comm, Layout, Layout, Mask, Score>;
template <class Comm, class Q, class Kv, class Mask, class Score = score::none>
all_gather(Comm&, plan, shape, shards<Q, Kv>, Mask, Score = {}, options = {})
    -> all_gather<Comm, Q, Kv, Mask, Score>;

} // namespace maskring::cp
