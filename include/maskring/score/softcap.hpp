// SPDX-License-Identifier: Apache-2.0
// Scores that are kept from growing.
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/score/concepts.hpp>

namespace maskring::score {

/// after · tanh(before · s): a softcap with other factors taken in.
struct scaled_tanh {
  float before, after;
  template <class Score>
  constexpr Score operator()(Score s, int, int) const {
    using real = detail::real<Score>;
    return static_cast<real>(after) * tanh(static_cast<real>(before) * s);
  }
};

/// cap · tanh(s / cap) (Gemma 2, 2024, after I. Bello et al., 2016).
class softcap {
public:
  /// @throws std::invalid_argument unless cap is a positive number and so is 1 / cap.
  constexpr explicit softcap(float cap) : cap_{cap} {
    maskring::detail::require(cap > 1e-38f && cap < 3e38f, "softcap: cap is ", cap,
                              ", expected a number above 1e-38 and below 3e38");
    one_cap_ = 1 / cap;
  }
  constexpr float cap() const { return cap_; }
  template <class Score>
  constexpr Score operator()(Score s, auto...) const {
    using real = detail::real<Score>;
    const auto cap = static_cast<real>(cap_);
    // A product, since a division by floats takes a branch on the device.
    const real one_cap = sizeof(real) < 8 ? real{one_cap_} : real{1} / cap;
    return cap * tanh(s * one_cap);
  }
  static constexpr bool special_functions = true;
  constexpr softcap from(int, int) const { return *this; }
  constexpr scaled_tanh scaled(float before, float after) const {
    return {before * one_cap_, after * cap_};
  }
  friend constexpr bool operator==(softcap, softcap) = default;

private:
  float cap_, one_cap_ = 1;
};

} // namespace maskring::score
