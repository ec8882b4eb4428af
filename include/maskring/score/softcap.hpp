// SPDX-License-Identifier: Apache-2.0
// Scores that are kept from growing.
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/score/concepts.hpp>

namespace maskring::score {

/// cap · tanh(s / cap) (Gemma 2, 2024, after I. Bello et al., 2016).
class softcap {
public:
  /// @throws std::invalid_argument unless cap is a positive number.
  constexpr explicit softcap(float cap) : cap_{cap} {
    maskring::detail::require(cap > 0 && cap < 3e38f, "softcap: cap is ", cap,
                              ", expected a positive number");
  }
  constexpr float cap() const { return cap_; }
  template <class Score>
  constexpr Score operator()(Score s, int, int, int, int) const {
    const auto cap = static_cast<detail::real<Score>>(cap_);
    return cap * tanh(s / cap);
  }
  friend constexpr bool operator==(softcap, softcap) = default;

private:
  float cap_;
};

}  // namespace maskring::score
