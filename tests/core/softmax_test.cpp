// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <maskring/core/softmax.hpp>

#include <cmath>
#include <random>
#include <vector>

using namespace maskring;

namespace {

template <class Real>
softmax_state<Real> state_of(const std::vector<Real>& scores) {
  softmax_state<Real> state;
  for (Real s : scores) state = merge(state, softmax_state<Real>::from_lse(s));
  return state;
}

} // namespace

TEST_CASE("the empty state is neutral and merges with itself") {
  const softmax_state<float> empty, one{2.0f, 3.0f};
  CHECK(merge(empty, empty).empty());
  CHECK(merge(empty, empty).lse() == -INFINITY);
  for (const auto& merged : {merge(empty, one), merge(one, empty)}) {
    CHECK(merged.maximum == one.maximum);
    CHECK(merged.sum == one.sum);
  }
  const merge_weights<float> nothing{-INFINITY, -INFINITY};
  CHECK(nothing.first == 0);
  CHECK(nothing.second == 0);
  CHECK(nothing.lse == -INFINITY);
  CHECK(merge_weights<float>{-INFINITY, 1.0f}.second == 1);
}

TEST_CASE("merging is associative and gives the log-sum-exp") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random{seed};
  std::normal_distribution<double> normal{0, 20};
  for (int trial = 0; trial < 500; ++trial) {
    std::vector<double> parts[3];
    double sum = 0;
    for (auto& part : parts) {
      part.resize(random() % 4);
      for (double& s : part) {
        s = random() % 5 == 0 ? -INFINITY : normal(random);
        sum += std::exp(s);
      }
    }
    const auto a = state_of(parts[0]), b = state_of(parts[1]), c = state_of(parts[2]);
    const double left = merge(merge(a, b), c).lse(), right = merge(a, merge(b, c)).lse();
    if (sum == 0) {
      CHECK(left == -INFINITY);
      CHECK(right == -INFINITY);
      continue;
    }
    CHECK(left == doctest::Approx(std::log(sum)).epsilon(1e-12));
    CHECK(right == doctest::Approx(left).epsilon(1e-12));
    const merge_weights<double> weights{a.lse(), merge(b, c).lse()};
    CHECK(weights.first + weights.second == doctest::Approx(1));
    CHECK(weights.lse == doctest::Approx(left));
  }
}
