// SPDX-License-Identifier: Apache-2.0
// Score modifiers one after the other.
#pragma once

#include <maskring/score/concepts.hpp>

namespace maskring::score {

/// second(first(s)) near a pair, as `local_score::from` gives it.
template <class First, class Second>
struct then_nearby {
  First first;
  Second second;
  constexpr auto operator()(auto s, int dq, int dkv) const {
    return second(first(s, dq, dkv), dq, dkv);
  }
};

/// second(first(s)). Also written `first >> second`. Learns if one of the two does.
template <score_mod First, score_mod Second>
struct then {
  First first;
  Second second;
  static constexpr bool special_functions =
      uses_special_functions<First> || uses_special_functions<Second>;

  constexpr auto operator()(auto s, int b, int h, int q, int kv) const {
    return second(first(s, b, h, q, kv), b, h, q, kv);
  }

  constexpr auto at(int b, int h) const {
    using first_at = decltype(score_at(first, b, h));
    using second_at = decltype(score_at(second, b, h));
    return then<first_at, second_at>{score_at(first, b, h), score_at(second, b, h)};
  }

  constexpr auto from(int q, int kv) const requires(local_score<First>&& local_score<Second>) {
    return then_nearby{first.from(q, kv), second.from(q, kv)};
  }

  template <class T>
  constexpr void add_gradient(T dscore, T s, int b, int h, int q, int kv) const
      requires(learnable_score<First> || learnable_score<Second>) {
    const T between = first(s, b, h, q, kv);
    if constexpr (learnable_score<Second>) second.add_gradient(dscore, between, b, h, q, kv);
    if constexpr (learnable_score<First>) {
      const dual<T> outer = second(dual<T>{between, T{1}}, b, h, q, kv);
      first.add_gradient(dscore * outer.derivative, s, b, h, q, kv);
    }
  }

  friend bool operator==(const then&, const then&) = default;
};

template <class First, class Second>
then_nearby(First, Second) -> then_nearby<First, Second>;

template <score_mod First, score_mod Second>
constexpr then<First, Second> operator>>(First first, Second second) {
  return {first, second};
}

} // namespace maskring::score
