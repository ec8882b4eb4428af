// SPDX-License-Identifier: Apache-2.0
// Score modifiers in the backward pass: their derivative, and what those that learn are owed.
#pragma once

#include <maskring/cuda/detail/fragment.cuh>
#include <maskring/cuda/detail/ptx/exp2.cuh>
#include <maskring/cuda/detail/softmax.cuh>

namespace maskring::cuda::detail {

/// Hands a learning modifier the gradient of its result for one pair; others ask for nothing.
template <class Score>
__device__ inline void learn(const Score& score, float dscore, float s, int b, int h, int q,
                             int kv) {
  if constexpr (learnable_score<Score>) score.add_gradient(dscore, s, b, h, q, kv);
}

/// One pair of a 16-bit call: `p`, the product of query and key, becomes the weight, `ds`, that of
/// output gradient and value, the gradient of the product. `modify` is `score` at the pair's head.
template <class T, class Score, class AtHead, class Kept>
__device__ inline void modify_pair(const Score& score, const AtHead& modify, float scale,
                                   float lse2, float delta, Kept kept, const score_origin& at,
                                   float& p, float& ds) {
  const float product = p * scale;
  const dual<score_number<T>> s =
      modify(dual<score_number<T>>{product, 1.0f}, at.batch, at.head, at.q, at.kv);
  p = ptx::exp2(static_cast<float>(s.value) * log2_e - lse2);
  if (!kept) p = 0;
  // A weight of 0 passes no gradient, also where the modifier gave −inf and no derivative.
  const float dscore = p * (ds - delta);
  if (p > 0) learn(score, dscore, product, at.batch, at.head, at.q, at.kv);
  ds = p > 0 ? static_cast<float>(dscore * s.derivative) : 0.0f;
}

} // namespace maskring::cuda::detail
