// SPDX-License-Identifier: Apache-2.0
// What score modifiers learn, added up by a backward pass in double precision.
#pragma once

#include "../cp/problems.hpp"

#include <maskring/score/exact_sum.hpp>

#include <span>

namespace maskring::testing {

template <class T>
inputs<T> inputs_of(const whole_inputs<T>& in) {
  auto given = inputs{*in.q, *in.k, *in.v};
  given.sink = in.sink_view();
  return given;
}

/// Hands to the score modifier what a backward pass in double precision finds. `Saved` is the type
/// that the output was rounded to in between.
template <class Saved = double, class T, class Mask, class Score>
void hand_gradients(const whole_inputs<T>& in, const Mask& mask, const Score& score) {
  const auto given = inputs_of(in);
  const auto fwd = reference_forward(given, mask, score);
  const double scale = reference_scale(given, {});
  const index_t group = in.q.extent(1) / in.k.extent(1);
  const auto rounded = [](double x) {
    if constexpr (element<Saved>) {
      return to_double(Saved(static_cast<float>(x)));
    } else {
      return x;
    }
  };
  for_each_index((*fwd.lse).extents, [&](index_t b, index_t h, index_t i) {
    if (!std::isfinite(fwd.lse(b, h, i))) return;
    double delta = -double{in.dlse(b, h, i)};
    for (index_t d = 0; d < in.v.extent(3); ++d) {
      delta += to_double(in.dout(b, h, i, d)) * rounded(fwd.out(b, h, i, d));
    }
    const auto changed = reference_scores(given, scale, mask, score, b, h, i);
    const auto plain = reference_scores(given, scale, mask, score::none{}, b, h, i);
    for (index_t j = 0; j < in.k.extent(2); ++j) {
      const double p = std::exp(changed[j].value - fwd.lse(b, h, i));
      if (p == 0) continue;
      double dp = 0;
      for (index_t d = 0; d < in.v.extent(3); ++d) {
        dp += to_double(in.dout(b, h, i, d)) * to_double(in.v(b, h / group, j, d));
      }
      score.add_gradient(p * (dp - delta), plain[j].value, static_cast<int>(b), static_cast<int>(h),
                         static_cast<int>(i), static_cast<int>(j));
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
