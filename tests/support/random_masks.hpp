// SPDX-License-Identifier: Apache-2.0
// Checks of a mask's verdicts against looking at every pair.
#pragma once

#include <maskring/block/build.hpp>

#include <doctest/doctest.h>

#include <random>

namespace maskring::testing {

/// Asks the mask about random rectangles within the given lengths: every `none` and `all` must be
/// true, and where `exact` is set every `some` too. Returns how many `some` were in truth not.
template <mask_mod Mask>
int check_verdicts(const Mask& mask, index_t q_len, index_t kv_len, std::mt19937& random,
                   bool exact = false, int trials = 300) {
  const auto part = [&](index_t length) {
    const index_t a = random() % length, b = random() % length;
    return range{min(a, b), min(max(a, b), min(a, b) + 40)};
  };
  int loose = 0;
  for (int trial = 0; trial < trials; ++trial) {
    const range q = part(q_len), kv = part(kv_len);
    const verdict claimed = verdict_of(mask, {q, kv});
    const verdict truth = elementwise_verdict(mask, 0, 0, q, kv);
    if (claimed == verdict::some) {
      loose += truth != verdict::some;
      continue;
    }
    INFO("q " << q.lo << ".." << q.hi << ", kv " << kv.lo << ".." << kv.hi);
    CHECK(static_cast<int>(claimed) == static_cast<int>(truth));
  }
  if (exact) CHECK(loose == 0);
  return loose;
}

} // namespace maskring::testing
