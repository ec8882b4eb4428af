// SPDX-License-Identifier: Apache-2.0
// Arithmetic on whole ranges of indices: how a mask is asked about a tile without visiting it.
#pragma once

#include <maskring/core/verdict.hpp>

#include <concepts>
#include <cstdint>

namespace maskring {

using index_t = std::int64_t;

namespace detail {

/// The greatest common divisor; of 0 and x it is |x|. Not std::gcd: nvcc 13.0 drops the compiler
/// built-ins within it from device code without a word, and it returns 0 there.
constexpr index_t gcd(index_t a, index_t b) {
  a = a < 0 ? -a : a;
  b = b < 0 ? -b : b;
  if (a == 1 || b == 1) return 1; // nearly always
  while (b != 0) {
    const index_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

} // namespace detail

/// A set of indices {lo, lo + step, …, hi}: a closed interval, or every step-th member of one.
///
/// Arithmetic on ranges gives a range that holds every possible result (interval arithmetic with a
/// congruence; P. Granger, "Static analysis of arithmetical congruences", 1989), so a comparison
/// that comes out `none` or `all` is a proof. Sums, differences and products with a number are
/// exact for independent ranges of one step; `depends` records the mask's arguments it came from.
struct range {
  index_t lo = 0;
  index_t hi = 0;
  index_t step = 0; ///< 0 for a single index
  std::uint8_t depends = 0;

  constexpr range() = default;

  /// The single index `value`.
  constexpr range(std::integral auto value)
      : lo{static_cast<index_t>(value)}, hi{static_cast<index_t>(value)} {}

  /// {first, first + stride, …, last}; `last - first` is a multiple of `stride`.
  constexpr range(index_t first, index_t last, index_t stride = 1, std::uint8_t axes = 0)
      : lo{first}, hi{last}, step{first == last ? 0 : stride}, depends{axes} {}

  constexpr bool is_point() const { return lo == hi; }

  constexpr range with_depends(std::uint8_t axes) const {
    range out = *this;
    out.depends = static_cast<std::uint8_t>(depends | axes);
    return out;
  }

  friend constexpr range operator+(range a, range b) {
    return {a.lo + b.lo, a.hi + b.hi, detail::gcd(a.step, b.step), joint(a, b)};
  }
  friend constexpr range operator-(range a) { return {-a.hi, -a.lo, a.step, a.depends}; }
  friend constexpr range operator+(range a) { return a; }
  friend constexpr range operator-(range a, range b) { return a + (-b); }

  friend constexpr range operator*(range a, range b) {
    const index_t corner[] = {a.lo * b.lo, a.lo * b.hi, a.hi * b.lo, a.hi * b.hi};
    index_t low = corner[0], high = corner[0];
    for (index_t c : corner) {
      low = c < low ? c : low;
      high = c > high ? c : high;
    }
    const index_t stride = detail::gcd(detail::gcd(a.lo * b.step, b.lo * a.step), a.step * b.step);
    return {low, high, stride, joint(a, b)};
  }

  /// Division as in C++: the quotient is cut off towards zero.
  friend constexpr range operator/(range a, range b) { return divide(a, b, false); }
  /// Remainder as in C++: it has the sign of the dividend.
  friend constexpr range operator%(range a, range b) {
    if (a.lo >= 0) return floor_mod(a, b.lo < 0 ? abs(b) : b);
    if (a.hi <= 0) return -(-a % b);
    const range size = abs(b);
    return {1 - size.hi, size.hi - 1, 1, joint(a, b)};
  }

  friend constexpr range operator<<(range a, range n) {
    return a * range{index_t{1} << n.lo, index_t{1} << n.hi, 1, n.depends};
  }
  friend constexpr range operator>>(range a, range n) {
    return floor_div(a, range{index_t{1} << n.lo, index_t{1} << n.hi, 1, n.depends});
  }

  friend constexpr kleene operator<(range a, range b) {
    return {a.hi < b.lo ? verdict::all : a.lo >= b.hi ? verdict::none : verdict::some, joint(a, b)};
  }
  friend constexpr kleene operator>(range a, range b) { return b < a; }
  friend constexpr kleene operator<=(range a, range b) { return !(b < a); }
  friend constexpr kleene operator>=(range a, range b) { return !(a < b); }
  friend constexpr kleene operator==(range a, range b) {
    const index_t common = detail::gcd(a.step, b.step);
    const bool apart = a.hi < b.lo || b.hi < a.lo || (common > 1 && (a.lo - b.lo) % common != 0);
    return {apart                          ? verdict::none
            : a.is_point() && b.is_point() ? verdict::all
                                           : verdict::some,
            joint(a, b)};
  }
  friend constexpr kleene operator!=(range a, range b) { return !(a == b); }

  friend constexpr range floor_div(range a, range b) { return divide(a, b, true); }

  /// Remainder of floor division by a positive number: 0 ≤ result < b.
  friend constexpr range floor_mod(range a, range b) {
    if (!b.is_point()) return {0, b.hi - 1, 1, joint(a, b)};
    const index_t n = b.lo;
    const range quotient = floor_div(a, b);
    if (quotient.is_point()) return a - quotient * b;
    const index_t stride = detail::gcd(a.step, n); // of the residues, where the range wraps
    const index_t first = a.lo - floor_div(range{a.lo}, range{stride}).lo * stride;
    return {first, n - stride + first, stride, joint(a, b)};
  }

  friend constexpr range abs(range a) {
    if (a.lo >= 0) return a;
    if (a.hi <= 0) return -a;
    const index_t stride = detail::gcd(a.step, 2 * a.lo); // |x| is x or -x, which differ by 2x
    const index_t first = a.lo - floor_div(range{a.lo}, range{stride}).lo * stride;
    return {first, -a.lo > a.hi ? -a.lo : a.hi, stride, a.depends};
  }
  friend constexpr range min(range a, range b) {
    return {a.lo < b.lo ? a.lo : b.lo, a.hi < b.hi ? a.hi : b.hi, mixed_step(a, b), joint(a, b)};
  }
  friend constexpr range max(range a, range b) { return -min(-a, -b); }

  /// The smallest such range that holds both.
  friend constexpr range hull(range a, range b) {
    return {a.lo < b.lo ? a.lo : b.lo, a.hi > b.hi ? a.hi : b.hi, mixed_step(a, b), joint(a, b)};
  }

private:
  static constexpr std::uint8_t joint(range a, range b) {
    return static_cast<std::uint8_t>(a.depends | b.depends);
  }
  static constexpr index_t mixed_step(range a, range b) {
    return detail::gcd(detail::gcd(a.step, b.step), a.lo - b.lo);
  }

  static constexpr index_t quotient(index_t x, index_t y, bool floor) {
    const index_t cut = x / y;
    return cut - (floor && x % y != 0 && (x < 0) != (y < 0) ? 1 : 0);
  }

  // Quotients are monotonic in each operand while the divisor keeps its sign, so corners suffice.
  static constexpr range divide(range a, range b, bool floor) {
    const index_t corner[] = {quotient(a.lo, b.lo, floor), quotient(a.lo, b.hi, floor),
                              quotient(a.hi, b.lo, floor), quotient(a.hi, b.hi, floor)};
    index_t low = corner[0], high = corner[0];
    for (index_t c : corner) {
      low = c < low ? c : low;
      high = c > high ? c : high;
    }
    const bool same_side = floor || a.lo >= 0 || a.hi <= 0;
    const bool strided = b.is_point() && a.step % b.lo == 0 && same_side;
    const index_t stride = strided ? (a.step / b.lo < 0 ? -a.step / b.lo : a.step / b.lo) : 1;
    return {low, high, stride, joint(a, b)};
  }
};

// Known here too, so that maskring::floor_div(q, 4) finds them whatever kind of number q is.
constexpr range floor_div(range a, range b);
constexpr range floor_mod(range a, range b);
constexpr range abs(range a);
constexpr range min(range a, range b);
constexpr range max(range a, range b);
constexpr range hull(range a, range b);

/// Floor division of numbers, the same name as for ranges: floor_div(-1, 4) is -1.
constexpr auto floor_div(std::integral auto a, std::integral auto b) {
  const auto quotient = a / b;
  return quotient - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
}
/// The remainder that goes with floor_div: floor_mod(-1, 4) is 3.
constexpr auto floor_mod(std::integral auto a, std::integral auto b) {
  const auto remainder = a % b;
  return remainder + (remainder != 0 && (remainder < 0) != (b < 0) ? b : 0);
}
constexpr auto abs(std::integral auto a) { return a < 0 ? -a : a; }
constexpr auto min(std::integral auto a, std::integral auto b) { return a < b ? a : b; }
constexpr auto max(std::integral auto a, std::integral auto b) { return a < b ? b : a; }

/// `a` where the condition holds, else `b`: the branch that works over numbers and ranges alike.
template <class A, class B>
constexpr auto select(bool condition, A a, B b) {
  return condition ? a : b;
}
constexpr range select(kleene condition, range a, range b) {
  const range out = condition.value() == verdict::all    ? a
                    : condition.value() == verdict::none ? b
                                                         : hull(a, b);
  return out.with_depends(condition.depends());
}
constexpr kleene select(kleene condition, kleene a, kleene b) {
  return (condition & a) | ((!condition) & b) | (a & b);
}

constexpr auto clamp(auto x, auto lo, auto hi) { return min(max(x, lo), hi); }

/// Whether lo ≤ x ≤ hi. One question where two comparisons would each be asked alone: over a range
/// of every step-th index it is exact, `(lo <= x) & (x <= hi)` is not.
constexpr bool within(std::integral auto x, std::integral auto lo, std::integral auto hi) {
  return lo <= x && x <= hi;
}
constexpr kleene within(range x, range lo, range hi) {
  const auto depends = static_cast<std::uint8_t>(x.depends | lo.depends | hi.depends);
  if (x.lo >= lo.hi && x.hi <= hi.lo) return {verdict::all, depends};
  index_t first = x.lo; // the first member that is not below every lo
  if (first < lo.lo && x.step > 0) first += (lo.lo - first + x.step - 1) / x.step * x.step;
  const bool none = first < lo.lo || first > x.hi || first > hi.hi;
  return {none ? verdict::none : verdict::some, depends};
}

/// A rectangle of index pairs, for one batch entry and head or ranges of them.
struct tile {
  range q;
  range kv;
  range batch = 0;
  range head = 0;
};

} // namespace maskring
