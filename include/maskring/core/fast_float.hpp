// SPDX-License-Identifier: Apache-2.0
// The number that bfloat16 kernels compute scores with, and the elementary functions of all
// numbers.
#pragma once

#include <cmath>
#include <concepts>
#include <type_traits>

namespace maskring {

/// A float whose tanh, exp and quotients are the GPU's approximations, in one or two instructions:
/// relative errors near 2^-11 (tanh) and 2^-22. Device kernels for bfloat16 hand scores to
/// modifiers as this type, for they round weights to 2^-9 anyway; kernels for half and float hand
/// them floats. On the host it is a float.
struct fast_float {
  float value = 0;

  constexpr fast_float() = default;
  template <class Number>
  requires std::is_arithmetic_v<Number>
  constexpr fast_float(Number v) : value{static_cast<float>(v)} {}
  constexpr operator float() const { return value; }

  friend constexpr fast_float operator+(fast_float a) { return a; }
  friend constexpr fast_float operator-(fast_float a) { return -a.value; }
  constexpr fast_float& operator+=(fast_float b) { return *this = value + b.value; }
  constexpr fast_float& operator-=(fast_float b) { return *this = value - b.value; }
  constexpr fast_float& operator*=(fast_float b) { return *this = value * b.value; }
  constexpr fast_float& operator/=(fast_float b);
};

/// A real number that is not a dual.
template <class T>
concept plain_real = std::floating_point<T> || std::same_as<T, fast_float>;

namespace detail {
/// Operands of fast_float's arithmetic: at least one is a fast_float, the other may be any number.
template <class A, class B>
concept fast_pair = (std::same_as<A, fast_float> &&
                     (std::same_as<B, fast_float> || std::is_arithmetic_v<B>)) ||
                    (std::same_as<B, fast_float> && std::is_arithmetic_v<A>);
} // namespace detail

template <class A, class B>
requires detail::fast_pair<A, B>
constexpr fast_float operator+(A a, B b) { return fast_float{a}.value + fast_float{b}.value; }
template <class A, class B>
requires detail::fast_pair<A, B>
constexpr fast_float operator-(A a, B b) { return fast_float{a}.value - fast_float{b}.value; }
template <class A, class B>
requires detail::fast_pair<A, B>
constexpr fast_float operator*(A a, B b) { return fast_float{a}.value * fast_float{b}.value; }
template <class A, class B>
requires detail::fast_pair<A, B>
constexpr fast_float operator/(A a, B b) {
#ifdef __CUDA_ARCH__
  float inverse; // of a divisor that does not change, once
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(fast_float{b}.value));
  return fast_float{a}.value * inverse;
#else
  return fast_float{a}.value / fast_float{b}.value;
#endif
}
constexpr fast_float& fast_float::operator/=(fast_float b) { return *this = *this / b; }

// The elementary functions under one name for all numbers.
using std::abs;
using std::cos;
using std::exp;
using std::log;
using std::sin;
using std::sqrt;
using std::tanh;

constexpr fast_float tanh(fast_float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x.value));
  return y;
#else
  return std::tanh(x.value);
#endif
}
constexpr fast_float exp(fast_float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x.value * 1.44269504088896340736f));
  return y;
#else
  return std::exp(x.value);
#endif
}
constexpr fast_float log(fast_float x) { return std::log(x.value); }
constexpr fast_float sqrt(fast_float x) { return std::sqrt(x.value); }
constexpr fast_float sin(fast_float x) { return std::sin(x.value); }
constexpr fast_float cos(fast_float x) { return std::cos(x.value); }
constexpr fast_float abs(fast_float x) { return x.value < 0 ? -x.value : x.value; }

} // namespace maskring

template <class Number>
requires std::is_arithmetic_v<Number>
struct std::common_type<maskring::fast_float, Number> {
  using type = maskring::fast_float;
};
template <class Number>
requires std::is_arithmetic_v<Number>
struct std::common_type<Number, maskring::fast_float> {
  using type = maskring::fast_float;
};
