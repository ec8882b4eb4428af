// SPDX-License-Identifier: Apache-2.0
// Numbers that carry a derivative: how a score modifier differentiates itself.
#pragma once

#include <maskring/core/fast_float.hpp>

#include <cmath>
#include <concepts>
#include <type_traits>

namespace maskring {

namespace detail {
/// What counts as a constant in arithmetic with the dual number `Dual`.
template <class C, class Dual>
concept constant_of = !std::same_as<C, Dual> && std::convertible_to<C, typename Dual::value_type>;
} // namespace detail

/// A value and its derivative with respect to the unmodified score (forward-mode automatic
/// differentiation; R. E. Wengert, 1964). Arithmetic follows the rules of calculus.
template <plain_real T>
struct dual {
  using value_type = T;
  T value = 0;
  T derivative = 0;

  constexpr dual() = default;
  constexpr dual(T v, T d) : value{v}, derivative{d} {}
  template <class Number>
  requires std::convertible_to<Number, T> &&(!std::same_as<Number, dual>)constexpr dual(Number v)
      : value{static_cast<T>(v)} {}

  friend constexpr dual operator+(dual a) { return a; }
  friend constexpr dual operator-(dual a) { return {-a.value, -a.derivative}; }
  friend constexpr dual operator+(dual a, dual b) {
    return {a.value + b.value, a.derivative + b.derivative};
  }
  friend constexpr dual operator-(dual a, dual b) {
    return {a.value - b.value, a.derivative - b.derivative};
  }
  friend constexpr dual operator*(dual a, dual b) {
    return {a.value * b.value, a.derivative * b.value + a.value * b.derivative};
  }
  friend constexpr dual operator/(dual a, dual b) {
    const T quotient = a.value / b.value;
    return {quotient, (a.derivative - quotient * b.derivative) / b.value};
  }

  // With a constant: nothing is added that is known to be 0, which compilers must keep.
  template <detail::constant_of<dual> C>
  friend constexpr dual operator+(dual a, C b) {
    return {a.value + T(b), a.derivative};
  }
  template <detail::constant_of<dual> C>
  friend constexpr dual operator+(C a, dual b) {
    return b + a;
  }
  template <detail::constant_of<dual> C>
  friend constexpr dual operator-(dual a, C b) {
    return {a.value - T(b), a.derivative};
  }
  template <detail::constant_of<dual> C>
  friend constexpr dual operator-(C a, dual b) {
    return {T(a) - b.value, -b.derivative};
  }
  template <detail::constant_of<dual> C>
  friend constexpr dual operator*(dual a, C b) {
    return {a.value * T(b), a.derivative * T(b)};
  }
  template <detail::constant_of<dual> C>
  friend constexpr dual operator*(C a, dual b) {
    return b * a;
  }
  template <detail::constant_of<dual> C>
  friend constexpr dual operator/(dual a, C b) {
    return {a.value / T(b), a.derivative / T(b)};
  }

  constexpr dual& operator+=(dual b) { return *this = *this + b; }
  constexpr dual& operator-=(dual b) { return *this = *this - b; }
  constexpr dual& operator*=(dual b) { return *this = *this * b; }
  constexpr dual& operator/=(dual b) { return *this = *this / b; }

  friend constexpr bool operator<(dual a, dual b) { return a.value < b.value; }
  friend constexpr bool operator>(dual a, dual b) { return a.value > b.value; }
  friend constexpr bool operator<=(dual a, dual b) { return a.value <= b.value; }
  friend constexpr bool operator>=(dual a, dual b) { return a.value >= b.value; }
  friend constexpr bool operator==(dual a, dual b) { return a.value == b.value; }
};

template <class T>
constexpr dual<T> exp(dual<T> x) {
  const T e = exp(x.value);
  return {e, e * x.derivative};
}
template <class T>
constexpr dual<T> log(dual<T> x) {
  return {log(x.value), x.derivative / x.value};
}
template <class T>
constexpr dual<T> sqrt(dual<T> x) {
  const T root = sqrt(x.value);
  return {root, x.derivative / (2 * root)};
}
template <class T>
constexpr dual<T> tanh(dual<T> x) {
  const T t = tanh(x.value);
  return {t, (1 - t * t) * x.derivative};
}
template <class T>
constexpr dual<T> sin(dual<T> x) {
  return {sin(x.value), cos(x.value) * x.derivative};
}
template <class T>
constexpr dual<T> cos(dual<T> x) {
  return {cos(x.value), -sin(x.value) * x.derivative};
}
template <class T>
constexpr dual<T> abs(dual<T> x) {
  return x.value < 0 ? -x : x;
}

/// A real number: floating-point or a dual of one.
template <class T>
inline constexpr bool is_dual = false;
template <class T>
inline constexpr bool is_dual<dual<T>> = true;
template <class T>
concept real = plain_real<T> || is_dual<T>;

template <real A, real B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? std::common_type_t<A, B>(b) : std::common_type_t<A, B>(a);
}
template <real A, real B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? std::common_type_t<A, B>(b) : std::common_type_t<A, B>(a);
}

} // namespace maskring
