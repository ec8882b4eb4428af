// SPDX-License-Identifier: Apache-2.0
#include <maskring/score/exact_sum.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <vector>

using namespace maskring;

namespace {

double sum_of(const std::vector<float>& terms) {
  score::exact_sum sum;
  for (float x : terms) sum.add(x);
  return sum.value();
}

// Floats of all magnitudes and both signs.
std::vector<float> any_floats(std::size_t count, unsigned seed) {
  std::mt19937 random{seed};
  std::vector<float> out;
  while (out.size() < count) {
    float x;
    const auto bits = static_cast<std::uint32_t>(random());
    std::memcpy(&x, &bits, sizeof x);
    if (std::isfinite(x)) out.push_back(x);
  }
  return out;
}

} // namespace

static_assert([] {
  score::exact_sum sum;
  for (float x : {3e38f, 1.5f, -3e38f}) sum.add(x);
  return sum.value() == 1.5;
}());

TEST_CASE("an exact sum of one term is that term") {
  const float most = std::numeric_limits<float>::max();
  const float least = std::numeric_limits<float>::denorm_min();
  for (float x : {0.0f, 1.0f, -1.0f, 0.1f, most, -most, least, -least, 0x1.fffffep-127f}) {
    CHECK(sum_of({x}) == double{x});
  }
  const unsigned seed = std::random_device{}();
  CAPTURE(seed);
  for (float x : any_floats(10000, seed)) REQUIRE(sum_of({x}) == double{x});
}

TEST_CASE("an exact sum loses nothing, however far its terms are apart") {
  const float most = std::numeric_limits<float>::max();
  const float least = std::numeric_limits<float>::denorm_min();
  CHECK(sum_of({most, least, 1.0f, -most}) == 1.0); // to the nearest double: 1 + 2^-149
  CHECK(sum_of({most, least, 1.0f, -most, -1.0f}) == double{least});
  CHECK(sum_of({most, most, most, -1.0f, -most, -most, -most}) == -1.0);
  CHECK(sum_of(std::vector<float>(100000, most)) == 1e5 * double{most});
  CHECK(sum_of(std::vector<float>(100000, -least)) == -1e5 * double{least});
}

TEST_CASE("an exact sum is the same in every order and from many threads") {
  const unsigned seed = std::random_device{}();
  CAPTURE(seed);
  std::vector<float> terms = any_floats(20000, seed);
  const double expected = sum_of(terms);
  // Its own opposite in another order takes it to exactly nothing.
  std::vector<float> both = terms;
  for (float x : terms) both.push_back(-x);
  std::mt19937 random{seed};
  std::shuffle(both.begin(), both.end(), random);
  CHECK(sum_of(both) == 0.0);
  for (int i = 0; i < 5; ++i) {
    std::shuffle(terms.begin(), terms.end(), random);
    CHECK(sum_of(terms) == expected);
  }
  score::exact_sum shared;
  std::vector<std::thread> team;
  for (int t = 0; t < 4; ++t) {
    team.emplace_back([&, t] {
      for (std::size_t i = static_cast<std::size_t>(t); i < terms.size(); i += 4)
        shared.add(terms[i]);
    });
  }
  for (std::thread& thread : team) thread.join();
  CHECK(shared.value() == expected);
}

TEST_CASE("an exact sum of similar terms is right to the last bit of a double") {
  const unsigned seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random{seed};
  std::vector<float> terms;
  std::int64_t expected = 0; // in units of 2^-30
  for (int i = 0; i < 100000; ++i) {
    const auto whole = static_cast<std::int32_t>(random() % (1u << 24)) - (1 << 23);
    expected += whole;
    terms.push_back(std::ldexp(static_cast<float>(whole), -30));
  }
  CHECK(sum_of(terms) == std::ldexp(static_cast<double>(expected), -30));
}

TEST_CASE("a term that is not finite makes the sum NaN") {
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(std::isnan(sum_of({1.0f, infinity})));
  CHECK(std::isnan(sum_of({infinity, -infinity})));
  CHECK(std::isnan(sum_of({std::nanf(""), 1.0f})));
}
