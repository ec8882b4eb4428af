// SPDX-License-Identifier: Apache-2.0
#include <maskring/score/bias.hpp>
#include <maskring/score/compose.hpp>
#include <maskring/score/position.hpp>
#include <maskring/score/rotary_part.hpp>
#include <maskring/score/softcap.hpp>
#include <maskring/shard/rewrite.hpp>

#include "support/tensor.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

using namespace maskring;

namespace {

// The new score against its definition in double, the float form against the double one, and the
// derivative by a dual against a central difference.
template <class Score, class Definition>
void check_score(const char* name, const Score& score, const Definition& definition, int batch,
                 int heads, int q_len, int kv_len) {
  INFO(name);
  static_assert(score_mod<Score>);
  static_assert(std::equality_comparable<Score>);
  std::mt19937 random{7};
  std::uniform_real_distribution<double> scores{-40.0, 40.0};
  double worst = 0, worst_float = 0, worst_derivative = 0;
  for (int b = 0; b < batch; ++b) {
    for (int h = 0; h < heads; ++h) {
      for (int q = 0; q < q_len; ++q) {
        for (int k = 0; k < kv_len; ++k) {
          const double s = scores(random), expected = definition(s, b, h, q, k);
          const double size = std::max(1.0, std::abs(expected));
          worst = std::max(worst, std::abs(score(s, b, h, q, k) - expected) / size);
          const float in_float = score(static_cast<float>(s), b, h, q, k);
          worst_float = std::max(worst_float, std::abs(in_float - expected) / size);
          const double step = 1e-5;
          const double slope =
              (definition(s + step, b, h, q, k) - definition(s - step, b, h, q, k)) / (2 * step);
          const auto d = score(dual<double>{s, 1.0}, b, h, q, k);
          worst = std::max(worst, std::abs(d.value - expected) / size);
          worst_derivative = std::max(worst_derivative, std::abs(d.derivative - slope));
        }
      }
    }
  }
  CHECK(worst < 1e-6); // tables hold floats
  CHECK(worst_float < 1e-5);
  CHECK(worst_derivative < 1e-7);
}

std::vector<float> random_floats(std::size_t count, unsigned seed) {
  std::mt19937 random{seed};
  std::normal_distribution<float> normal;
  std::vector<float> out(count);
  for (float& x : out) x = normal(random);
  return out;
}

// T5's formula as its authors give it, in double.
int t5_bucket(int relative_position, bool bidirectional, int buckets, int farthest) {
  int out = 0;
  if (bidirectional) {
    buckets /= 2;
    out += relative_position > 0 ? buckets : 0;
    relative_position = std::abs(relative_position);
  } else {
    relative_position = -std::min(relative_position, 0);
  }
  const int exact = buckets / 2;
  if (relative_position < exact) return out + relative_position;
  const int large =
      exact + static_cast<int>(std::log(relative_position / double(exact)) /
                                   std::log(farthest / double(exact)) * (buckets - exact) +
                               1e-9);
  return out + std::min(large, buckets - 1);
}

} // namespace

TEST_CASE("score modifiers are what their definitions say, and differentiate themselves") {
  check_score(
      "none", score::none{}, [](double s, int, int, int, int) { return s; }, 1, 1, 5, 7);
  check_score(
      "relative", score::relative{}, [](double s, int, int, int q, int k) { return s + (q - k); },
      1, 2, 61, 47);
  check_score(
      "alibi", score::alibi{6},
      [](double s, int, int h, int q, int k) {
        return s + (k - q) * std::pow(2.0, -8.0 * (h + 1) / 6);
      },
      1, 6, 61, 47);
  check_score(
      "softcap", score::softcap{20},
      [](double s, int, int, int, int) { return 20 * std::tanh(s / 20); }, 2, 1, 31, 17);
  const auto slopes = score::alibi_slopes::table(std::vector<float>{0.5f, -0.25f, 3.0f}, 3);
  check_score(
      "alibi_slopes", score::alibi_slopes{slopes.view()},
      [](double s, int, int h, int q, int k) {
        return s + (k - q) * (h == 0 ? 0.5 : h == 1 ? -0.25 : 3.0);
      },
      1, 3, 61, 47);
  const auto sums = score::sandwich::table(16, 61);
  check_score(
      "sandwich", score::sandwich{sums.view(), 4},
      [](double s, int, int h, int q, int k) {
        double sum = 0;
        for (int i = 0; i < 8; ++i) {
          sum += std::cos(std::abs(q - k) * std::pow(10000.0, -2.0 * i / 16));
        }
        return s + sum * 4 / (8.0 * (h + 1));
      },
      1, 4, 61, 47);
}

TEST_CASE("alibi's slopes are right for any number of heads") {
  double worst = 0, worst_float = 0;
  for (int heads = 1; heads <= 200; ++heads) {
    const score::alibi modifier{heads};
    for (int h = 0; h < heads; ++h) {
      const double slope = std::exp2(-8.0 * (h + 1) / heads);
      worst = std::max(worst, std::abs(modifier(0.0, 0, h, 0, 1) / slope - 1));
      worst_float = std::max(worst_float, std::abs(modifier(0.0f, 0, h, 0, 1) / slope - 1));
    }
  }
  CHECK(worst < 1e-15);
  CHECK(worst_float < 3e-7);
}

TEST_CASE("biases by distance and by pair") {
  constexpr int heads = 3;
  for (bool bidirectional : {true, false}) {
    const auto buckets = score::distance_buckets::t5(32, 50, bidirectional);
    const auto values = random_floats(heads * 32, 1);
    const score::bias_table table{values, heads, 32};
    check_score(
        "T5", score::bias{table.view(), buckets.view()},
        [&](double s, int, int h, int q, int k) {
          return s + double{values[h * 32 + t5_bucket(k - q, bidirectional, 32, 50)]};
        },
        1, heads, 131, 97);
  }
  const auto clipped = score::distance_buckets::clipped(9);
  const auto values = random_floats(19, 2);
  const score::bias_table shared{values, 1, 19};
  check_score(
      "clipped", score::bias{shared.view(), clipped.view()},
      [&](double s, int, int, int q, int k) {
        return s + double{values[std::min(std::max(k - q, -9), 9) + 9]};
      },
      1, heads, 61, 47);
  std::vector<int> hops;
  for (int i = 0; i < 61 * 47; ++i) hops.push_back(i * 31 % 7);
  const score::pair_buckets graph{hops, 61, 47, 7};
  const auto by_hops = random_floats(heads * 7, 3);
  const score::bias_table table{by_hops, heads, 7};
  check_score(
      "Graphormer", score::bias{table.view(), graph.view()},
      [&](double s, int, int h, int q, int k) {
        return s + double{by_hops[h * 7 + hops[q * 47 + k]]};
      },
      1, heads, 61, 47);
}

TEST_CASE("the rotary part of latent attention") {
  constexpr index_t batch = 2, heads = 4, kv_heads = 2, q_len = 31, kv_len = 17, dim = 8;
  std::mt19937_64 random{4};
  const auto q = testing::random_tensor<float, 4>(random, {batch, heads, q_len, dim});
  const auto k = testing::random_tensor<float, 4>(random, {batch, kv_heads, kv_len, dim});
  check_score(
      "rotary_part", score::rotary_part{*q, *k, 0.3f},
      [&](double s, int b, int h, int i, int j) {
        double dot = 0;
        for (int d = 0; d < dim; ++d) dot += double{q(b, h, i, d)} * k(b, h / 2, j, d);
        return s + double{0.3f} * dot;
      },
      batch, heads, q_len, kv_len);
}

TEST_CASE("modifiers one after the other, and under the context-parallel rewrite") {
  const auto both = score::alibi{4} >> score::softcap{15} >> score::relative{};
  const auto definition = [](double s, int, int h, int q, int k) {
    return 15 * std::tanh((s + (k - q) * std::pow(2.0, -2.0 * (h + 1))) / 15) + (q - k);
  };
  check_score("then", both, definition, 1, 4, 31, 17);
  const shard::zigzag layout{96, 3};
  for (int rank = 0; rank < 3; ++rank) {
    const auto q_map = layout.map(rank), kv_map = layout.map((rank + 1) % 3);
    check_score(
        "rewritten", shard::rewrite(both, q_map, kv_map),
        [&](double s, int b, int h, int q, int k) {
          return definition(s, b, h, q_map(q), kv_map(k));
        },
        1, 4, 32, 32);
  }
}

TEST_CASE("modifiers of distance are the same when asked from a pair near by") {
  const auto check = [](const auto& score, double tolerance) {
    static_assert(local_score<std::decay_t<decltype(score)>>);
    const auto near = score.from(1000, 900);
    double worst = 0;
    for (int dq : {-8, 0, 8}) {
      for (int dkv = 0; dkv < 200; ++dkv) {
        const double expected = score(1.5, 0, 3, 1000 + dq, 900 + dkv);
        worst = std::max(worst, std::abs(near(1.5f, dq, dkv) - expected));
      }
    }
    CHECK(worst < tolerance);
  };
  check(score::relative{}, 1e-6);
  check(score_at(score::alibi{12}, 0, 3), 1e-4);
  check(score::softcap{30}, 1e-6);
  check(score_at(score::alibi{12} >> score::softcap{30}, 0, 3), 1e-4);
  static_assert(!local_score<score::alibi>); // its slope is the head's

  const auto buckets = score::distance_buckets::t5(32, 120, true);
  const score::bias_table table{random_floats(4 * 32, 4), 4, 32};
  const score::bias read{table.view(), buckets.view()};
  check(score_at(read, 0, 3), 1e-6);
  static_assert(learnable_score<decltype(score_at(read, 0, 3))>);
  using by_pair = score::bias<score::pair_buckets_view>;
  static_assert(!local_score<decltype(score_at(std::declval<by_pair>(), 0, 3))>);
}

TEST_CASE("a softcap takes in the factors before and behind it") {
  const score::softcap cap{30};
  const auto scaled = cap.from(7, 5).scaled(0.25f, 3.0f);
  for (const double s : {-400.0, -20.0, -0.5, 0.0, 1.5, 60.0, 1000.0}) {
    CHECK(scaled(static_cast<float>(s), 8, 9) ==
          doctest::Approx(3 * 30 * std::tanh(0.25 * s / 30)).epsilon(1e-5));
  }
  static_assert(uses_special_functions<score::softcap>);
  static_assert(uses_special_functions<decltype(score::relative{} >> cap)>);
  static_assert(!uses_special_functions<score::relative>);
}

TEST_CASE("score modifiers refuse bad arguments") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH_AS(score::alibi{0}, "maskring: alibi: heads is 0, expected 1 or more",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(score::alibi_slopes::table(std::vector<float>{1, nan}, 2),
                       "maskring: alibi_slopes: entry 1 is nan, expected a finite number",
                       std::invalid_argument);
  CHECK_THROWS_AS(score::alibi_slopes::table(std::vector<float>{1}, 2), std::invalid_argument);
  CHECK_THROWS_AS(score::softcap{0}, std::invalid_argument);
  CHECK_THROWS_AS(score::softcap{nan}, std::invalid_argument);
  CHECK_THROWS_AS(score::sandwich::table(7, 10), std::invalid_argument);
  CHECK_THROWS_AS(score::distance_buckets::clipped(-1), std::invalid_argument);
  CHECK_THROWS_AS(score::distance_buckets::t5(1, 128, false), std::invalid_argument);
  CHECK_THROWS_AS(score::distance_buckets::t5(32, 8, true), std::invalid_argument);
  CHECK_THROWS_WITH_AS(score::pair_buckets(std::vector<int>{0, 3}, 1, 2, 3),
                       "maskring: pair_buckets: entry 1 is 3, expected 0 to 2",
                       std::invalid_argument);
  CHECK_THROWS_AS(score::pair_buckets(std::vector<int>{0, 1}, 2, 2, 3), std::invalid_argument);
  CHECK_THROWS_AS(score::bias_table(std::vector<float>{1, nan}, 1, 2), std::invalid_argument);
  CHECK_THROWS_AS(score::bias_table(std::vector<float>{1}, 1, 2), std::invalid_argument);
  const score::bias_table table{std::vector<float>{1, 2}, 1, 2};
  const auto three = score::distance_buckets::clipped(1);
  CHECK_THROWS_WITH_AS((score::bias{table.view(), three.view()}),
                       "maskring: bias: the table has 2 buckets, expected 3",
                       std::invalid_argument);
  std::vector<float> data(24);
  const view<const float, 4> q{data.data(), {1, 3, 2, 4}}, k{data.data(), {1, 2, 3, 4}};
  CHECK_THROWS_AS((score::rotary_part{q, k, 1.0f}), std::invalid_argument);
  CHECK_THROWS_AS((score::rotary_part{q, q, nan}), std::invalid_argument);
}
