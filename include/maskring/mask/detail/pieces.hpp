// SPDX-License-Identifier: Apache-2.0
// Answering for a rectangle by answering for its parts.
#pragma once

#include <maskring/core/range.hpp>

namespace maskring::mask::detail {

/// The members of r within [start, stop); `lo > hi` if there are none.
constexpr range clip(range r, index_t start, index_t stop) {
  const index_t step = r.step > 0 ? r.step : 1;
  const index_t lo = r.lo >= start ? r.lo : r.lo + (start - r.lo + step - 1) / step * step;
  const index_t hi = r.hi < stop ? r.hi : r.hi - (r.hi - stop + step) / step * step;
  return {lo, hi, step, r.depends};
}

constexpr bool is_empty(range r) { return r.lo > r.hi; }

/// A range cut in two: the members below a position and those from there on. Either can be empty.
struct halves {
  range below, from;

  constexpr halves(range r, index_t at)
      : below{r.hi < at ? r : clip(r, r.lo, at)}, from{r.lo >= at ? r : clip(r, at, r.hi + 1)} {}
};

/// The verdict of a rectangle from the verdicts of the parts that it consists of: exact if they
/// are.
class joined {
public:
  constexpr void add(kleene part) {
    kept_ = kept_ || part.value() != verdict::none;
    dropped_ = dropped_ || part.value() != verdict::all;
    depends_ = static_cast<std::uint8_t>(depends_ | part.depends());
  }
  /// Whether further parts cannot change the answer.
  constexpr bool mixed() const { return kept_ && dropped_; }
  constexpr kleene result(std::uint8_t depends) const {
    const verdict value = mixed() ? verdict::some : kept_ ? verdict::all : verdict::none;
    return {value, static_cast<std::uint8_t>(depends | depends_)};
  }

private:
  bool kept_ = false, dropped_ = false;
  std::uint8_t depends_ = 0;
};

constexpr std::uint8_t joint_depends(range a, range b) {
  return static_cast<std::uint8_t>(a.depends | b.depends);
}

} // namespace maskring::mask::detail
