// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <maskring/core/dual.hpp>

#include <random>

using namespace maskring;

namespace {

template <class F>
void check_derivative(F f, double x) {
  const double step = 1e-6;
  const double numeric = (f(x + step) - f(x - step)) / (2 * step);
  CHECK(f(dual<double>{x, 1}).value == doctest::Approx(f(x)));
  CHECK(f(dual<double>{x, 1}).derivative == doctest::Approx(numeric).epsilon(1e-6));
}

} // namespace

TEST_CASE("derivatives agree with difference quotients") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random{seed};
  std::uniform_real_distribution<double> positive{0.2, 3};
  for (int trial = 0; trial < 200; ++trial) {
    const double x = positive(random);
    check_derivative([](auto s) { return s * s - 3 * s + 1; }, x);
    check_derivative([](auto s) { return (2 - s) / (s + 1); }, x);
    check_derivative([](auto s) { return maskring::tanh(s / 30) * 30; }, x);
    check_derivative([](auto s) { return maskring::exp(-s) * maskring::log(s); }, x);
    check_derivative([](auto s) { return maskring::sqrt(s) + maskring::sin(s) * maskring::cos(s); },
                     x);
    check_derivative([](auto s) { return maskring::abs(-s) + maskring::max(s, s * s / 2); }, x);
  }
}
