// SPDX-License-Identifier: Apache-2.0
// What a score modifier is, which of them learn, and the one that changes nothing.
#pragma once

#include <maskring/core/dual.hpp>

#include <type_traits>

namespace maskring {

/// A score modifier: a trivially copyable functor `score(s, batch, head, query, key)` that returns
/// the new score. `s` (already multiplied by the scale) is a float, a double, a fast_float (in
/// device kernels for bfloat16), or a dual of one; over a dual the functor gives its own
/// derivative. The counterpart of FlexAttention's score_mod.
template <class S>
concept score_mod = std::is_trivially_copyable_v<S> && requires(const S score, float s, int i) {
  { score(s, i, i, i, i) } -> std::convertible_to<float>;
  { score(dual<float>{s, 1.0f}, i, i, i, i) } -> std::convertible_to<dual<float>>;
};

/// A score modifier with parameters that learn. The backward pass calls, once for each kept pair
/// and from many threads at once, `score.add_gradient(dscore, s, batch, head, query, key)` with the
/// gradient of the loss by the new score, and the score s that the modifier was given. The modifier
/// adds dscore · ∂(new score)/∂(parameter) to memory that it points to (score::exact_sum makes the
/// order irrelevant), or does nothing if it points to none. Under context parallelism every rank
/// adds the part of its own pairs, so the gradient is the sum over the ranks (cp::sum_over_ranks).
template <class S>
concept learnable_score = score_mod<S> && requires(const S score, float x, int i) {
  score.add_gradient(x, x, i, i, i, i);
};

/// What is left of a score modifier for one batch entry and head: `score.at(batch, head)`, a
/// functor with the same parameters, where there is such a member; else the modifier itself.
/// Kernels ask once a head, so what depends on the head alone is not computed for each element.
template <score_mod S>
constexpr auto score_at(const S& score, int batch, int head) {
  if constexpr (requires { score.at(batch, head); }) {
    return score.at(batch, head);
  } else {
    return score;
  }
}

/// A score modifier that knows positions by their distance from others: `score.from(query, key)` is
/// a functor of a score and of how many positions further on its query and key are, `(s, dq, dkv)`.
/// Kernels ask for it once a tile, so what depends on the place of the tile is not computed for
/// each element. They ask about pairs past the ends of the sequence too, so it must read nothing
/// there. If the functor has `scaled(before, after)`, that is after · functor(before · s, …) with
/// the products computed beforehand; kernels put their own factors there.
template <class S>
concept local_score = score_mod<S> && requires(const S score, float s, int i) {
  { score.from(i, i)(s, i, i) } -> std::convertible_to<float>;
};

/// Whether a score modifier takes the special function unit (tanh, exp) for each element, by its
/// member `special_functions`: kernels may then take another shape.
template <score_mod S>
inline constexpr bool uses_special_functions = [] {
  if constexpr (requires { S::special_functions; }) return bool{S::special_functions};
  return false;
}();

namespace score {

/// The score as it is. Kernels leave the modifier out altogether for this one.
struct none {
  constexpr auto operator()(auto s, int, int, int, int) const { return s; }
  friend constexpr bool operator==(none, none) = default;
};

namespace detail {

/// The plain number behind a score: float for float, fast_float and duals of them.
template <class Score>
struct real_of {
  using type = Score;
};
template <>
struct real_of<fast_float> {
  using type = float;
};
template <class T>
struct real_of<dual<T>> : real_of<T> {};
template <class Score>
using real = typename real_of<Score>::type;

} // namespace detail
} // namespace score
} // namespace maskring
