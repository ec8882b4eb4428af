// SPDX-License-Identifier: Apache-2.0
// What the backward pass owes to score modifiers that learn.
#pragma once

#include <maskring/cpu/detail/scores.hpp>

#include <cmath>

namespace maskring::cpu::detail {

/// A block of transposed scores on the way back, before the softmax's gradient replaces it.
struct score_gradient_block {
  const float* given;  ///< scaled scores that the modifier was given, natural units
  const float* scores; ///< what became of them, masked, base 2
  const float* dp;     ///< dout·vᵀ
  const float* lse;    ///< per lane, base 2
  const float* delta;  ///< per lane
};

/// Calls score.add_gradient for every pair whose weight is not 0, with dscore = p·(dp − delta).
template <learnable_score Score>
void add_score_gradients(const Score& score, const score_gradient_block& block,
                         const score_block& at) {
  for (int k = 0; k < at.keys; ++k) {
    for (int l = 0; l < at.queries; ++l) {
      const int i = k * query_block + l;
      const float p = std::exp2(block.scores[i] - block.lse[l]);
      if (p == 0) continue;
      score.add_gradient(p * (block.dp[i] - block.delta[l]), block.given[i], at.b, at.h, at.q + l,
                         at.kv + k);
    }
  }
}

} // namespace maskring::cpu::detail
