// SPDX-License-Identifier: Apache-2.0
// The caller's functors over a block of transposed scores: the score modifier, then the mask.
#pragma once

#include <maskring/core/dual.hpp>
#include <maskring/cpu/detail/softmax.hpp>
#include <maskring/mask/concepts.hpp>
#include <maskring/score/concepts.hpp>

#include <type_traits>

namespace maskring::cpu::detail {

/// Where a block of scores lies, in indices of the call's tensors.
struct score_block {
  int b, h, q, kv; ///< of its first element
  int queries, keys;
};

/// Removes the scores that the mask forbids.
template <class Mask>
struct mask_kernel {
  float* scores;
  const Mask& mask;
  score_block at;

  template <class Isa>
  MASKRING_INLINE void operator()(Isa) const {
    const Mask keep = mask; // a local copy cannot alias the scores
    const score_block block = at;
    float* row = scores;
    for (int k = 0; k < block.keys; ++k, row += query_block) {
      if (block.queries == query_block) {
        for (int l = 0; l < query_block; ++l) one(keep, block, row, k, l);
      } else {
        for (int l = 0; l < block.queries; ++l) one(keep, block, row, k, l);
      }
    }
  }

  static MASKRING_INLINE void one(const Mask& keep, const score_block& block, float* row, int k,
                                  int l) {
    const float s = row[l];
    row[l] = static_cast<bool>(keep(block.b, block.h, block.q + l, block.kv + k)) ? s : -infinity;
  }
};

/// Applies the score modifier to scaled scores (natural units) and brings them to base 2; also
/// stores its derivative where asked.
template <class Score>
struct score_kernel {
  float* scores;
  float* derivatives; ///< or null
  const Score& score;
  score_block at;

  template <class Isa>
  MASKRING_INLINE void operator()(Isa) const {
    const Score modify = score;
    const score_block block = at;
    for (int k = 0; k < block.keys; ++k) {
      for (int l = 0; l < block.queries; ++l) {
        const int i = k * query_block + l;
        const auto apply = [&](auto s) {
          return modify(s, block.b, block.h, block.q + l, block.kv + k);
        };
        if (derivatives) {
          const dual<float> s = apply(dual<float>{scores[i], 1.0f});
          scores[i] = s.value * log2_e;
          derivatives[i] = s.derivative;
        } else {
          scores[i] = static_cast<float>(apply(scores[i])) * log2_e;
        }
      }
      for (int l = block.queries; derivatives && l < padded_lanes(block.queries); ++l) {
        derivatives[k * query_block + l] = 0;
      }
    }
  }
};

template <class Score>
inline constexpr bool modifies_scores = !std::is_same_v<Score, score::none>;

/// The factor of q·k that brings it to the units in which the next step takes it.
template <class Score>
constexpr float query_factor(float scale) {
  return modifies_scores<Score> ? scale : scale * log2_e;
}

/// Turns products q·k into masked scores in base 2; `derivatives` may be null.
template <class Mask, class Score>
void finish_scores(isa level, float* scores, float* derivatives, const Mask& mask, bool partial,
                   const Score& score, const score_block& at) {
  if constexpr (modifies_scores<Score>) {
    dispatch(level, score_kernel<Score>{scores, derivatives, score, at});
  }
  if (partial) dispatch(level, mask_kernel<Mask>{scores, mask, at});
}

} // namespace maskring::cpu::detail
