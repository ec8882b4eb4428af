// SPDX-License-Identifier: Apache-2.0
// The lines that say whether results are right.
#pragma once

#include "problem.hpp"

#include <cstdio>

namespace flex {

/// fp32 rounds relative to the size of a gradient, and of scores beyond those of unit-normal
/// inputs; outputs are averages of unit-normal values.
struct tolerances {
  double output, gradients;

  /// @param largest the size of the largest score.
  tolerances(const whole<double>& reference, double largest)
      : output{2e-6 * std::max(1.0, largest / 16)} {
    double size = 1;
    for (const array<double>* g : {&reference.dq, &reference.dk, &reference.dv}) {
      for (const double x : g->data) size = std::max(size, std::abs(x));
    }
    gradients = output * size;
  }
};

inline void print_check_heading() {
  std::printf("\n%-56s %9s   %9s\n", "check", "max error", "tolerance");
}

/// One line; whether it holds.
inline bool check(const char* what, double error, double tolerance) {
  const bool holds = error <= tolerance;
  std::printf("%-56s %9.2e   %9.1e   %s\n", what, error, tolerance, holds ? "ok" : "MISMATCH");
  return holds;
}

} // namespace flex
