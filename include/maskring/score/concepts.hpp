// SPDX-License-Identifier: Apache-2.0
// What a score modifier is, and the one that changes nothing.
#pragma once

#include <maskring/core/dual.hpp>

#include <type_traits>

namespace maskring {

/// A score modifier: a trivially copyable functor `score(s, batch, head, query, key)` that returns
/// the new score. `s` (already multiplied by the scale) is a float, a double, or a dual of either;
/// over a dual the functor gives its own derivative. The counterpart of FlexAttention's score_mod.
template <class S>
concept score_mod = std::is_trivially_copyable_v<S> && requires(const S score, float s, int i) {
  { score(s, i, i, i, i) } -> std::convertible_to<float>;
  { score(dual<float>{s, 1.0f}, i, i, i, i) } -> std::convertible_to<dual<float>>;
};

namespace score {

/// The score as it is. Kernels leave the modifier out altogether for this one.
struct none {
  constexpr auto operator()(auto s, int, int, int, int) const { return s; }
  friend constexpr bool operator==(none, none) = default;
};

} // namespace score
} // namespace maskring
