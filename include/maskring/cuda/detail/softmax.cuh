// SPDX-License-Identifier: Apache-2.0
// The online softmax of the two rows of a fragment, in registers.
#pragma once

#include <maskring/core/softmax.hpp>
#include <maskring/cuda/detail/fragment.cuh>
#include <maskring/cuda/detail/ptx/exp2.cuh>

#include <limits>

namespace maskring::cuda::detail {

inline constexpr float log2_e = 1.44269504088896340736f;

/// core/softmax.hpp's state for a thread's two rows, in powers of two: a score s counts as
/// 2^(unit · s), `unit` being log2(e) times the scale not yet multiplied in (which must be positive).
///
/// What stands in for a row's maximum stays where it is until a score exceeds it by 2^8, since any
/// reference near the maximum serves (method: FlashAttention-4, 2026). The whole quad of lanes that
/// share the row knows it; each lane sums only its own columns, until `finish`.
struct online_softmax {
  static constexpr float infinity = std::numeric_limits<float>::infinity();

  float limit[2] = {-infinity, -infinity}; ///< the largest score that the reference serves
  float sum[2] = {0, 0};

  /// Takes in a tile of scores and leaves 2^(unit · s − reference) in their place. Returns whether
  /// outputs summed so far must be multiplied by `factor`, which is set only then; the same for all
  /// lanes of a warp.
  template <int Count>
  __device__ bool update(float (&s)[Count], float unit, float (&factor)[2]) {
    const bool raised = __any_sync(~0u, may_exceed_limit(s));
    if (raised) raise(s, unit, factor);
    float total[2][2] = {{sum[0], 0.0f}, {sum[1], 0.0f}};
    const float shift[2] = {reference(0, unit), reference(1, unit)};
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      const int r = fragment_layout::row(i);
      s[i] = ptx::exp2(s[i] * unit - shift[r]);
      total[r][(i >> 2) & 1] += s[i];
    }
    sum[0] = total[0][0] + total[0][1];
    sum[1] = total[1][0] + total[1][1];
    return raised;
  }

  /// Adds up the quad's shares and returns row r's state over natural scores.
  __device__ softmax_state<float> finish(int r, float unit) const {
    float total = sum[r];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    return total > 0 ? softmax_state<float>{reference(r, unit) * (1.0f / log2_e), total}
                     : softmax_state<float>{};
  }

private:
  static constexpr float slack = 8;

  /// While a row has seen nothing, 0 stands in for its maximum: −inf − −inf would be NaN.
  __device__ float reference(int r, float unit) const {
    return limit[r] == -infinity ? 0.0f : fmaf(limit[r], unit, -slack);
  }

  /// The bits of floats compare like integers if one of the two is positive, and integers have a
  /// maximum of three. A limit that is not positive counts as exceeded.
  template <int Count>
  __device__ bool may_exceed_limit(const float (&s)[Count]) const {
    const int bits[2] = {__float_as_int(limit[0]), __float_as_int(limit[1])};
    // Two chains a row: one alone would wait for each of its operations.
    int top[2][2] = {{bits[0], bits[0]}, {bits[1], bits[1]}};
#pragma unroll
    for (int i = 0; i < Count; i += 2) {
      int& chain = top[fragment_layout::row(i)][(i >> 2) & 1];
      chain = __vimax3_s32(chain, __float_as_int(s[i]), __float_as_int(s[i + 1]));
    }
    const int risen =
        (max(top[0][0], top[0][1]) ^ bits[0]) | (max(top[1][0], top[1][1]) ^ bits[1]);
    return (risen | ((bits[0] | bits[1]) & std::numeric_limits<int>::min())) != 0;
  }

  /// Gives rows whose scores exceed the limit a new reference, their maximum.
  template <int Count>
  __device__ void raise(const float (&s)[Count], float unit, float (&factor)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = -infinity;
#pragma unroll
      for (int i = 0; i < Count; ++i) {
        if (fragment_layout::row(i) == r) top = fmaxf(top, s[i]);
      }
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      const float before = fmaf(limit[r], unit, -slack); // −inf of a row that has seen nothing
      if (top > limit[r]) limit[r] = top + __fdividef(slack, unit);
      factor[r] = ptx::exp2(before - reference(r, unit)); // exactly 1 if they are equal
      sum[r] *= factor[r];
    }
  }
};

/// Multiplies a fragment's rows by their factors.
template <int Count>
__device__ inline void scale_rows(float (&fragment)[Count], const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) fragment[i] *= factor[fragment_layout::row(i)];
}

} // namespace maskring::cuda::detail
