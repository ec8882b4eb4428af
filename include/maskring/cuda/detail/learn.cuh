// SPDX-License-Identifier: Apache-2.0
// What the backward pass owes to score modifiers that learn.
#pragma once

#include <maskring/score/concepts.hpp>

namespace maskring::cuda::detail {

/// Hands a learning modifier the gradient of its result for one pair; others ask for nothing.
template <class Score>
__device__ inline void learn(const Score& score, float dscore, float s, int b, int h, int q,
                             int kv) {
  if constexpr (learnable_score<Score>) score.add_gradient(dscore, s, b, h, q, kv);
}

} // namespace maskring::cuda::detail
