// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <maskring/core/dual.hpp>

#include <initializer_list>

using namespace maskring;

namespace {

// A score modifier as users write them: generic, with numbers of several types.
constexpr auto modifier = [](auto s) { return 2 * tanh(s / 3.0) - s * 0.25f + 1; };

} // namespace

TEST_CASE("on the host a fast_float is a float") {
  for (float x : {-4.0f, -0.5f, 0.0f, 0.25f, 3.0f}) {
    CHECK(static_cast<float>(modifier(fast_float{x})) == doctest::Approx(modifier(x)));
    const auto slope = modifier(dual<fast_float>{x, 1});
    const auto expected = modifier(dual<double>{x, 1});
    CHECK(static_cast<double>(slope.value.value) == doctest::Approx(expected.value));
    CHECK(static_cast<double>(slope.derivative.value) ==
          doctest::Approx(expected.derivative).epsilon(1e-5));
  }
  fast_float sum = 1;
  sum += 2, sum *= 6.0f, sum -= 3, sum /= 3;
  CHECK(sum == 5.0f);
  CHECK(static_cast<float>(max(sum, 7.0f)) == 7.0f);
  CHECK(static_cast<float>(min(-sum, 2.0f)) == -5.0f);
  CHECK(static_cast<float>(abs(-sum)) == 5.0f);
  CHECK(static_cast<float>(exp(log(sum)) + sqrt(sum * sum)) == doctest::Approx(10));
  static_assert(std::is_same_v<decltype(sum + 1.0), fast_float>);
}
