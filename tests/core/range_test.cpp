// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <maskring/core/range.hpp>

#include <random>

using namespace maskring;

namespace {

constexpr index_t stride(range r) { return r.step > 0 ? r.step : 1; }

bool holds(range r, index_t value) {
  return value >= r.lo && value <= r.hi && (value - r.lo) % stride(r) == 0;
}

// Every result of f over members of a and b must be in f(a, b), whose own bounds must be members.
template <class F>
void check_contains(range a, range b, F f) {
  const range result = f(a, b);
  CHECK((result.hi - result.lo) % stride(result) == 0);
  for (index_t x = a.lo; x <= a.hi; x += stride(a)) {
    for (index_t y = b.lo; y <= b.hi; y += stride(b)) {
      if (!holds(result, f(x, y))) {
        FAIL_CHECK("{" << a.lo << ".." << a.hi << ":" << a.step << "} op {" << b.lo << ".." << b.hi
                       << ":" << b.step << "} misses " << f(x, y));
        return;
      }
    }
  }
}

template <class F>
verdict brute_force(range a, range b, F f) {
  bool any = false, all = true;
  for (index_t x = a.lo; x <= a.hi; x += stride(a)) {
    for (index_t y = b.lo; y <= b.hi; y += stride(b)) (f(x, y) ? any : all) = f(x, y);
  }
  return all ? verdict::all : any ? verdict::some : verdict::none;
}

template <class F>
void check_sound(range a, range b, F f) {
  const verdict claimed = kleene{f(a, b)}.value();
  if (claimed != verdict::some) CHECK(claimed == brute_force(a, b, f));
}

} // namespace

TEST_CASE("arithmetic on ranges holds every possible result") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random{seed};
  const auto number = [&](int lo, int hi) {
    return std::uniform_int_distribution<int>{lo, hi}(random);
  };
  const auto any_range = [&] {
    const int lo = number(-12, 12), step = number(1, 5);
    return range{lo, lo + number(0, 6) * step, step};
  };
  for (int trial = 0; trial < 3000; ++trial) {
    const range a = any_range(), b = any_range(), n = number(1, 7);
    const range positive{n.lo, n.lo + number(0, 3)};
    check_contains(a, b, [](auto x, auto y) { return x + y; });
    check_contains(a, b, [](auto x, auto y) { return x - y; });
    check_contains(a, b, [](auto x, auto y) { return x * y; });
    check_contains(a, b, [](auto x, auto y) { return min(x, y); });
    check_contains(a, b, [](auto x, auto y) { return max(x, y); });
    check_contains(a, b, [](auto x, auto y) { return clamp(x, min(y, 3), max(y, 3)); });
    check_contains(a, b, [](auto x, auto y) { return select(x < y, x, y - 20); });
    check_contains(a, n, [](auto x, auto) { return abs(x); });
    for (const range divisor : {n, -n, positive}) {
      check_contains(a, divisor, [](auto x, auto y) { return x / y; });
      check_contains(a, divisor, [](auto x, auto y) { return x % y; });
      check_contains(a, divisor, [](auto x, auto y) { return floor_div(x, y); });
    }
    check_contains(a, n, [](auto x, auto y) { return floor_mod(x, y); });
    check_contains(a, positive, [](auto x, auto y) { return floor_mod(x, y); });
    check_contains(a, range{number(0, 4)}, [](auto x, auto y) { return x >> y; });
    check_contains(a, range{number(0, 4)},
                   [](auto x, auto y) { return x * (index_t{1} << 3) + y; });
    check_sound(a, b, [](auto x, auto y) { return x < y; });
    check_sound(a, b, [](auto x, auto y) { return x <= y; });
    check_sound(a, b, [](auto x, auto y) { return x > y; });
    check_sound(a, b, [](auto x, auto y) { return x >= y; });
    check_sound(a, b, [](auto x, auto y) { return x == y; });
    check_sound(a, b, [](auto x, auto y) { return x != y; });
    check_sound(a, b, [](auto x, auto y) { return (x < y) | ((y - x == 3) ^ (x > 0)); });
    check_sound(a, b, [](auto x, auto y) { return (x < 0) == (y < 0); });
    check_sound(a, b, [n](auto x, auto y) { return within(x, y, y + n.lo); });
  }
}

TEST_CASE("comparisons of independent ranges, and within, are exact") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random{seed};
  const auto number = [&](int lo, int hi) {
    return std::uniform_int_distribution<int>{lo, hi}(random);
  };
  for (int trial = 0; trial < 3000; ++trial) {
    const int step = number(1, 5), lo = number(-9, 9), other = number(-9, 9);
    const range a{lo, lo + step * number(0, 6), step}, b{other, other + step * number(0, 6), step};
    const int width = number(0, 12);
    const auto exact = [&](auto f) { CHECK(kleene{f(a, b)}.value() == brute_force(a, b, f)); };
    exact([](auto x, auto y) { return x < y; });
    exact([](auto x, auto y) { return x >= y; });
    exact([](auto x, auto y) { return x == y; });
    exact([&](auto x, auto y) { return within(x - y, 0, width); });
  }
}

TEST_CASE("results remember the axes they come from") {
  const range q{0, 7, 1, query_axis}, h{0, 3, 1, head_axis};
  CHECK((q + 1 < 3).depends() == query_axis);
  CHECK((q * h >= 2).depends() == (query_axis | head_axis));
  CHECK(select(h < 2, q, 5).depends == (query_axis | head_axis));
  CHECK(within(q, 0, h).depends() == (query_axis | head_axis));
  CHECK((kleene{true} & (q < 3)).depends() == query_axis);
}

TEST_CASE("constant evaluation") {
  static_assert((range{0, 3} < range{4, 9}).value() == verdict::all);
  static_assert((range{0, 3} < range{3, 9}).value() == verdict::some);
  static_assert((range{0, 8, 2} == range{1, 9, 2}).value() == verdict::none);
  static_assert(floor_div(-1, 4) == -1 && floor_mod(-1, 4) == 3);
  static_assert(floor_mod(range{8, 11}, 4).lo == 0 && floor_mod(range{0, 12, 4}, 4).is_point());
  static_assert(((range{0, 3} < 5) && true).value() == verdict::all);
}

TEST_CASE("range: qualified calls find the functions of ranges and of numbers") {
  const auto all = [](auto x) {
    return maskring::max(maskring::min(maskring::abs(maskring::floor_mod(x, 4)), 7),
                         maskring::floor_div(x, 4));
  };
  CHECK(all(9) == 2);
  CHECK(all(maskring::range{9}).lo == 2);
  CHECK(maskring::hull(maskring::range{1}, maskring::range{5}).hi == 5);
}
