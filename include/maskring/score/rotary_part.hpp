// SPDX-License-Identifier: Apache-2.0
// The part of latent attention's score that carries the position.
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/core/float16.hpp>
#include <maskring/core/view.hpp>
#include <maskring/score/concepts.hpp>
#include <maskring/score/exact_sum.hpp>

namespace maskring::score {

/// s + scale · ⟨q_rope[b, h, q], k_rope[b, h // G, kv]⟩ with G = query heads / key heads: rotated
/// queries and keys beside compressed ones (DeepSeek-V2, multi-head latent attention, 2024).
///
/// The tensors are [batch, heads, sequence, dim] in global order, on every rank of a
/// context-parallel call; their gradients, optional, are added to tensors of exact sums of the same
/// shapes. These are large and slow: where q and k can be laid out anew, rotated dimensions belong
/// beside the others.
template <class T>
class rotary_part {
public:
  /// @throws std::invalid_argument if the tensors do not fit together or the scale is not finite.
  constexpr rotary_part(const view<const T, 4>& q_rope, const view<const T, 4>& k_rope, float scale)
      : q_{q_rope}, k_{k_rope}, scale_{scale} {
    maskring::detail::require(q_.extent(0) == k_.extent(0), "rotary_part: k_rope has batch extent ",
                              k_.extent(0), ", expected ", q_.extent(0), " (as q_rope)");
    maskring::detail::require(q_.extent(3) == k_.extent(3), "rotary_part: k_rope has dim extent ",
                              k_.extent(3), ", expected ", q_.extent(3), " (as q_rope)");
    maskring::detail::require(k_.extent(1) > 0 && q_.extent(1) % k_.extent(1) == 0,
                              "rotary_part: q_rope has ", q_.extent(1),
                              " heads, expected a multiple of the ", k_.extent(1), " of k_rope");
    maskring::detail::require(scale - scale == 0, "rotary_part: scale is ", scale,
                              ", expected a finite number");
  }

  /// The same, adding the gradients of q_rope and k_rope to these.
  /// @throws std::invalid_argument if their shapes differ.
  constexpr rotary_part with_gradient(const view<exact_sum, 4>& dq,
                                      const view<exact_sum, 4>& dk) const {
    for (int d = 0; d < 4; ++d) {
      maskring::detail::require(dq.extent(d) == q_.extent(d) && dk.extent(d) == k_.extent(d),
                                "rotary_part: gradients have extents ", dq.extent(d), " and ",
                                dk.extent(d), " in dimension ", d, ", expected ", q_.extent(d),
                                " and ", k_.extent(d));
    }
    rotary_part out = *this;
    out.dq_ = dq;
    out.dk_ = dk;
    return out;
  }

  template <class Score>
  constexpr Score operator()(Score s, int b, int h, int q, int kv) const {
    using real = detail::real<Score>;
    const index_t head = key_head(h);
    real dot = 0;
    for (index_t d = 0; d < q_.extent(3); ++d) {
      dot += number<real>(q_(b, h, q, d)) * number<real>(k_(b, head, kv, d));
    }
    return s + static_cast<real>(scale_) * dot;
  }

  template <class Number>
  constexpr void add_gradient(Number dscore, Number, int b, int h, int q, int kv) const {
    if (!dq_) return;
    const float d_dot = static_cast<float>(dscore) * scale_;
    const index_t head = key_head(h);
    for (index_t d = 0; d < q_.extent(3); ++d) {
      dq_(b, h, q, d).add(d_dot * number<float>(k_(b, head, kv, d)));
      dk_(b, head, kv, d).add(d_dot * number<float>(q_(b, h, q, d)));
    }
  }
  friend constexpr bool operator==(const rotary_part& a, const rotary_part& b) {
    return a.q_.data == b.q_.data && a.k_.data == b.k_.data && a.scale_ == b.scale_ &&
           a.dq_.data == b.dq_.data;
  }

private:
  template <class Real>
  static constexpr Real number(T x) {
    if constexpr (std::is_floating_point_v<T>) {
      return static_cast<Real>(x);
    } else {
      return static_cast<Real>(static_cast<float>(x));
    }
  }
  constexpr index_t key_head(int h) const { return h / (q_.extent(1) / k_.extent(1)); }

  view<const T, 4> q_, k_;
  view<exact_sum, 4> dq_{}, dk_{};
  float scale_;
};

template <class Q, class K>
rotary_part(const Q&, const K&, float)
    -> rotary_part<std::remove_const_t<typename Q::element_type>>;

} // namespace maskring::score
