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
/// A row's maximum is known to the whole quad of lanes that share it; each lane sums only its own
/// columns, until `finish`.
struct online_softmax {
  static constexpr float infinity = std::numeric_limits<float>::infinity();

  float maximum[2] = {-infinity, -infinity};
  float sum[2] = {0, 0};

  /// Takes in a tile of scores, leaves 2^(unit · (s − maximum)) in their place, and returns the
  /// factors by which outputs summed over the old maximum must be multiplied.
  ///
  /// `Lazy` leaves the maximum where it is until a row's scores exceed it by 2^8, since any reference
  /// near the maximum serves: most tiles then need no rescaling. Returns whether a factor of the warp
  /// may differ from 1. Method: FlashAttention-4, 2026.
  template <bool Lazy = false, int Count>
  __device__ bool update(float (&s)[Count], float unit, float (&factor)[2]) {
    float largest[2] = {maximum[0], maximum[1]};
    take_largest(s, largest);
    float shift[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      if (Lazy && (top - maximum[r]) * unit <= 8.0f) top = maximum[r];
      // While a row has seen nothing, 0 stands in for its maximum: −inf − −inf would be NaN.
      const float reference = top == -infinity ? 0.0f : top;
      shift[r] = reference * unit;
      factor[r] = ptx::exp2((maximum[r] - reference) * unit);  // exactly 1 if they are equal
      maximum[r] = top;
    }
    const bool changed = !Lazy || __any_sync(~0u, factor[0] != 1 || factor[1] != 1);
    float total[2][2] = {{sum[0] * factor[0], 0.0f}, {sum[1] * factor[1], 0.0f}};
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      const int r = fragment_layout::row(i);
      s[i] = ptx::exp2(s[i] * unit - shift[r]);
      total[r][(i >> 2) & 1] += s[i];
    }
    sum[0] = total[0][0] + total[0][1];
    sum[1] = total[1][0] + total[1][1];
    return changed;
  }

  /// The quad's shares of row r's sum, added up.
  __device__ float total(int r) const {
    float all = sum[r];
    all += __shfl_xor_sync(~0u, all, 1);
    all += __shfl_xor_sync(~0u, all, 2);
    return all;
  }

  /// Row r's state over natural scores scale · s.
  __device__ softmax_state<float> finish(int r, float scale) const {
    const float total = this->total(r);
    return total > 0 ? softmax_state<float>{maximum[r] * scale, total} : softmax_state<float>{};
  }

private:
  /// Raises each row's `largest` to its largest score.
  ///
  /// The bits of floats compare like integers as soon as one of the two is positive, and integers have
  /// a maximum of three; a warp with a row that is all negative so far compares floats.
  template <int Count>
  static __device__ void take_largest(const float (&s)[Count], float (&largest)[2]) {
    // Two chains a row: one alone would wait for each of its operations.
    int bits[2][2];
    for (int r = 0; r < 2; ++r) bits[r][0] = bits[r][1] = __float_as_int(largest[r]);
#pragma unroll
    for (int i = 0; i < Count; i += 2) {
      int& chain = bits[fragment_layout::row(i)][(i >> 2) & 1];
      chain = __vimax3_s32(chain, __float_as_int(s[i]), __float_as_int(s[i + 1]));
    }
    const int top[2] = {max(bits[0][0], bits[0][1]), max(bits[1][0], bits[1][1])};
    if (__any_sync(~0u, (top[0] | top[1]) < 0)) {
#pragma unroll
      for (int i = 0; i < Count; ++i) {
        float& row = largest[fragment_layout::row(i)];
        row = fmaxf(row, s[i]);
      }
    } else {
      largest[0] = __int_as_float(top[0]);
      largest[1] = __int_as_float(top[1]);
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
