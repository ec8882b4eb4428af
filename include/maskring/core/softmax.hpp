// SPDX-License-Identifier: Apache-2.0
// The online softmax: the state of a row of scores of which only a part has been seen.
#pragma once

#include <cmath>
#include <limits>

namespace maskring {

/// What is known of a row of scores so far: their maximum and the sum of exp(score − maximum).
///
/// The output that belongs to a state is Σ exp(score − maximum)·v / sum. Merging is associative and
/// the empty state is neutral, also with itself: no NaN arises from −inf − −inf.
/// Method: M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", 2018.
template <class Real>
struct softmax_state {
  Real maximum = -std::numeric_limits<Real>::infinity();
  Real sum = 0;

  /// Not of a NaN, which must show in the results.
  constexpr bool empty() const { return sum == 0; }

  /// The state whose log-sum-exp is `lse`; −inf gives the empty state.
  static constexpr softmax_state from_lse(Real lse) {
    return lse == -std::numeric_limits<Real>::infinity() ? softmax_state{} : softmax_state{lse, 1};
  }

  /// log Σ exp(score), natural; −inf for a row that has seen nothing.
  constexpr Real lse() const {
    return empty() ? -std::numeric_limits<Real>::infinity() : maximum + std::log(sum);
  }
};

/// exp(from − to), the factor by which sums over maximum `from` become sums over maximum `to ≥
/// from`; 0 where `from` belongs to an empty state.
template <class Real>
constexpr Real rescale_factor(Real from, Real to) {
  return from == -std::numeric_limits<Real>::infinity() ? Real{0} : std::exp(from - to);
}

/// The state of both parts of a row seen together.
template <class Real>
constexpr softmax_state<Real> merge(softmax_state<Real> a, softmax_state<Real> b) {
  const Real maximum = a.maximum < b.maximum ? b.maximum : a.maximum;
  return {maximum,
          a.sum * rescale_factor(a.maximum, maximum) + b.sum * rescale_factor(b.maximum, maximum)};
}

/// The shares of two normalised partial outputs in the output of the merged row:
/// out = first·out_a + second·out_b; both 0 where neither part saw anything.
template <class Real>
struct merge_weights {
  Real first = 0;
  Real second = 0;
  Real lse = -std::numeric_limits<Real>::infinity();

  constexpr merge_weights(Real lse_a, Real lse_b) {
    const auto a = softmax_state<Real>::from_lse(lse_a);
    const auto b = softmax_state<Real>::from_lse(lse_b);
    lse = merge(a, b).lse();
    if (!merge(a, b).empty()) {
      first = rescale_factor(a.maximum, lse);
      second = rescale_factor(b.maximum, lse);
    }
  }
};

} // namespace maskring
