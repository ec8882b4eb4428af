// SPDX-License-Identifier: Apache-2.0
// Keys gathered once for all ranks that share memory.
#pragma once

#include <maskring/cp/detail/gather_base.hpp>

#include <cstring>

namespace maskring::cp::detail {

/// Rank 0 keeps one copy of keys and values in global order; each rank puts its own there. In the
/// backward pass all add their shares of dk and dv to one sum of each, taking turns.
///
/// @tparam Base gather_base, or what builds on it.
template <class Base>
class gather_in_place : public Base {
  using Comm = typename Base::communicator;

protected:
  using Base::Base;

  template <class Exec, class T>
  std::pair<view<const T, 4>, view<const T, 4>>
  shared_keys(const Exec& exec, const view<const T, 4>& k, const view<const T, 4>& v) {
    const auto [all_k, all_v] = shared<T>(this->k_, this->v_);
    this->recorder_.compute(exec, {"own keys"}, [&, all_k = all_k, all_v = all_v] {
      const auto copy = [&](const view<const T, 4>& own, const view<T, 4>& place) {
        backend<Exec>::copy(exec, own, place);
      };
      for_own(k, all_k, copy);
      for_own(v, all_v, copy);
    });
    meet(exec);
    return {seen(all_k), seen(all_v)};
  }

  /// Every rank waits for all: what is shared is there, or may change again. All, since tiles reach
  /// into keys that nobody needs.
  template <class Exec>
  void meet(const Exec& exec) {
    const auto everybody = [](int) { return true; };
    exchange_word(exec, *this->comm_, everybody, everybody);
  }

  template <class Exec, class T, class O, class D, class G>
  void backward_in_place(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
                         const gradients<G>& grad) {
    const int rank = this->rank();
    const auto [dk, dv] = shared<float>(this->dk_, this->dv_);
    const auto clear = [&](const auto&, const view<float, 4>& part) {
      backend<Exec>::zero(exec, part);
    };
    for_own(grad.dk, dk, clear);
    for_own(grad.dv, dv, clear);
    const auto [k, v] = shared_keys(exec, in.k, in.v);
    saved<T, O> now{in.q, k, v, in.out, in.lse};
    now.sink = in.sink;
    const gradients<float> home =
        this->home_gradients(exec, grad, this->home_, {!adds_up_dq<Exec, T>, false, false});
    const gradients<float> shares{home.dq, seen(dk), seen(dv)};

    const auto nobody = [](int) { return false; };
    exchange_word(exec, *this->comm_, nobody, [&](int peer) { return peer == rank - 1; });
    this->attend_backward(exec, now, up, grad, shares.with_sink(grad.dsink), true);
    exchange_word(
        exec, *this->comm_, [&](int peer) { return peer == rank + 1; }, nobody);

    meet(exec);
    const auto hand_out = [&](const view<G, 4>& own, const view<float, 4>& sum) {
      if constexpr (std::is_same_v<G, float>) {
        if (this->options_.accumulate) {
          backend<Exec>::add(exec, view<const float, 4>{sum}, own);
          return;
        }
      }
      backend<Exec>::copy(exec, view<const float, 4>{sum}, own);
    };
    for_own(grad.dk, dk, hand_out);
    for_own(grad.dv, dv, hand_out);
    meet(exec); // now rank 0 may end, and its memory
    this->round_gradients(exec, home, grad);
  }

private:
  /// Two tensors of all keys that rank 0 keeps for all ranks: of the dims of keys and of values.
  template <class T>
  std::pair<view<T, 4>, view<T, 4>> shared(kept_buffer<Comm>& of_k, kept_buffer<Comm>& of_v) {
    const shape& s = this->sizes_;
    const index_t count = this->split_.kv.sequence();
    view<T, 4> both[2] = {{nullptr, {s.batch, s.kv_heads, count, s.qk_dim}},
                          {nullptr, {s.batch, s.kv_heads, count, s.v_dim}}};
    if (this->rank() == 0) {
      both[0] = this->template keys_tensor<T>(of_k, count, s.qk_dim);
      both[1] = this->template keys_tensor<T>(of_v, count, s.v_dim);
    }
    T* mine[] = {both[0].data, both[1].data};
    const std::vector<std::byte> all = this->comm_->share(std::as_bytes(std::span{mine}));
    std::memcpy(mine, all.data(), sizeof(mine));
    both[0].data = mine[0];
    both[1].data = mine[1];
    return {both[0], both[1]};
  }

  /// The keys from this rank's first needed one to its last.
  template <class T>
  view<T, 4> seen(const view<T, 4>& all) const {
    return all.slice(2, this->keys_at_.first(), this->keys_at_.size());
  }

  /// Where this rank's own keys stand in a tensor of all: calls visit(local, global) with views.
  template <class A, class B, class Visit>
  void for_own(const view<A, 4>& local, const view<B, 4>& all, Visit visit) const {
    for (const stretch& s : own_) {
      view<B, 4> place = all.slice(2, s.first, s.count);
      place.strides[2] *= s.step;
      visit(local.slice(2, s.position, s.count), place);
    }
  }

  // All keys of this rank.
  std::vector<stretch> own_ = stretches_of(this->split_.kv.map(this->rank()), {0, this->kv_size()});
};

} // namespace maskring::cp::detail
