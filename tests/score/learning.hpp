// SPDX-License-Identifier: Apache-2.0
// What score modifiers learn, added up by a backward pass in double precision.
#pragma once

#include "../cp/problems.hpp"

#include <maskring/score/exact_sum.hpp>

#include <functional>
#include <span>

namespace maskring::testing {

template <class T>
inputs<T> inputs_of(const whole_inputs<T>& in) {
  auto given = inputs{*in.q, *in.k, *in.v};
  given.sink = in.sink_view();
  return given;
}

/// How a computation with elements of type T rounds weights and outputs. `grain`, from 1 to 2,
/// moves the numbers that can be represented: other grains make other errors of the same size.
template <class T>
struct rounding {
  double grain = 1;
  double operator()(double x) const { return to_double(T(static_cast<float>(x * grain))) / grain; }
};

/// Hands to the score modifier what a backward pass in double precision finds. `Round` is what
/// happens to weights before they meet the values, and to the output in between.
template <class Round = std::identity, class T, class Mask, class Score>
void hand_gradients(const whole_inputs<T>& in, const Mask& mask, const Score& score,
                    const Round& round = {}) {
  const auto given = inputs_of(in);
  const auto fwd = reference_forward(given, mask, score);
  const double scale = reference_scale(given, {});
  const index_t group = in.q.extent(1) / in.k.extent(1);
  std::vector<double> weights(static_cast<std::size_t>(in.k.extent(2)));
  for_each_index((*fwd.lse).extents, [&](index_t b, index_t h, index_t i) {
    if (!std::isfinite(fwd.lse(b, h, i))) return;
    const auto changed = reference_scores(given, scale, mask, score, b, h, i);
    const auto plain = reference_scores(given, scale, mask, score::none{}, b, h, i);
    for (std::size_t j = 0; j < weights.size(); ++j) {
      weights[j] = std::exp(changed[j].value - fwd.lse(b, h, i));
    }
    double delta = -double{in.dlse(b, h, i)};
    for (index_t d = 0; d < in.v.extent(3); ++d) {
      double out = 0;
      for (index_t j = 0; j < in.k.extent(2); ++j) {
        out += round(weights[j]) * to_double(in.v(b, h / group, j, d));
      }
      delta += to_double(in.dout(b, h, i, d)) * round(out);
    }
    for (index_t j = 0; j < in.k.extent(2); ++j) {
      if (weights[j] == 0) continue;
      double dp = 0;
      for (index_t d = 0; d < in.v.extent(3); ++d) {
        dp += to_double(in.dout(b, h, i, d)) * to_double(in.v(b, h / group, j, d));
      }
      score.add_gradient(weights[j] * (dp - delta), plain[j].value, static_cast<int>(b),
                         static_cast<int>(h), static_cast<int>(i), static_cast<int>(j));
    }
  });
}

/// The largest difference, in units of the largest number (at least 1).
inline double gradient_error(std::span<const double> learned, std::span<const double> expected) {
  if (learned.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double worst = 0, size = 1;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(learned[i] - expected[i]);
    worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
    size = std::max(size, std::abs(expected[i]));
  }
  return worst / size;
}

inline std::vector<double> values_of(const tensor<score::exact_sum, 4>& sums) {
  std::vector<double> out;
  for (const score::exact_sum& sum : sums.storage()) out.push_back(sum.value());
  return out;
}

inline std::vector<float> small_numbers(std::size_t count) {
  std::vector<float> out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<float>(i * 37 % 19) / 19.0f - 0.5f;
  return out;
}

} // namespace maskring::testing
