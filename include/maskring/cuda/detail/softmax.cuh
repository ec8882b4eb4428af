// SPDX-License-Identifier: Apache-2.0
// The online softmax of the two rows of a fragment, in registers.
#pragma once

#include <maskring/core/softmax.hpp>
#include <maskring/cuda/detail/fragment.cuh>
#include <maskring/cuda/detail/ptx/exp2.cuh>

#include <limits>

namespace maskring::cuda::detail {

inline constexpr float log2_e = 1.44269504088896340736f;

/// How `online_softmax` computes.
struct softmax_policy {
  /// Of 16 exponentials, how many are polynomials on the FMA units, where the special function unit
  /// is the bottleneck. M. Zadouri et al., FlashAttention-4, 2026.
  int polynomial = 0;
  /// The sums keep the maximum they refer to until scores exceed it by 2^8: most tiles then need no
  /// rescaling. Exact, as any reference near the maximum is. From the same source.
  bool lazy = false;
};

/// core/softmax.hpp's state for a thread's two rows, in powers of two: a score s counts as
/// 2^(unit · s), `unit` being log2(e) times the scale not yet multiplied in (which must be positive).
///
/// A row's maximum is known to the whole quad of lanes that share it; each lane sums only its own
/// columns, until `finish`.
struct online_softmax {
  static constexpr float infinity = std::numeric_limits<float>::infinity();

  float maximum[2] = {-infinity, -infinity};
  float sum[2] = {0, 0};

  /// Takes in a tile of scores, leaves 2^(unit · (s − maximum)) in their place, and returns the
  /// factors by which outputs summed over the old maximum must be multiplied.
  template <softmax_policy P = softmax_policy{}, int Count>
  __device__ void update(float (&s)[Count], float unit, float (&factor)[2]) {
    float largest[2] = {maximum[0], maximum[1]};
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      float& row = largest[fragment_layout::row(i)];
      row = fmaxf(row, s[i]);
    }
    float shift[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 1));
      largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 2));
      if (P.lazy && (largest[r] - maximum[r]) * unit <= 8.0f) largest[r] = maximum[r];
      // While a row has seen nothing, 0 stands in for its maximum: −inf − −inf would be NaN.
      shift[r] = largest[r] == -infinity ? 0.0f : largest[r] * unit;
      factor[r] = ptx::exp2(maximum[r] * unit - shift[r]);
      sum[r] *= factor[r];
      maximum[r] = largest[r];
    }
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      const int r = fragment_layout::row(i);
      const float x = s[i] * unit - shift[r];
      const bool on_fma_units = i * P.polynomial / 16 != (i + 1) * P.polynomial / 16;
      s[i] = on_fma_units ? ptx::exp2_polynomial(x) : ptx::exp2(x);
      sum[r] += s[i];
    }
  }

  /// Adds up the quad's shares and returns row r's state over natural scores scale · s.
  __device__ softmax_state<float> finish(int r, float scale) const {
    float total = sum[r];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    return total > 0 ? softmax_state<float>{maximum[r] * scale, total} : softmax_state<float>{};
  }
};

/// Multiplies a fragment's rows by their factors; a warp whose factors are all 1 does nothing.
template <bool MostlyOne = false, int Count>
__device__ inline void scale_rows(float (&fragment)[Count], const float (&factor)[2]) {
  if (MostlyOne && !__any_sync(~0u, factor[0] != 1 || factor[1] != 1)) return;
#pragma unroll
  for (int i = 0; i < Count; ++i) fragment[i] *= factor[fragment_layout::row(i)];
}

}  // namespace maskring::cuda::detail
