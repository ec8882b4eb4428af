// SPDX-License-Identifier: Apache-2.0
// The online softmax of the two rows of a fragment, in registers.
#pragma once

#include <maskring/core/softmax.hpp>
#include <maskring/cuda/detail/fragment.cuh>
#include <maskring/cuda/detail/ptx/element.cuh>
#include <maskring/cuda/detail/ptx/exp2.cuh>

#include <cstdint>
#include <limits>
#include <type_traits>

namespace maskring::cuda::detail {

inline constexpr float log2_e = 1.44269504088896340736f;

/// core/softmax.hpp's state for a thread's two rows, in powers of two: a score s counts as
/// 2^(unit · s), `unit` being log2(e) times the scale not yet multiplied in (which must be positive).
/// Weights leave rounded to T, in pairs.
///
/// Any reference near a row's maximum serves in its place, so it stays until a weight reaches 2
/// (the idea: FlashAttention-4, 2026), which is one bit of the rounded weights: no maximum need be
/// known before the exponentials. References stand above the maximum by as much as T has digits to
/// spare. The whole quad of lanes that share a row knows its reference; each lane sums only its own
/// columns, until `finish`.
template <class T>
struct online_softmax {
  static constexpr float infinity = std::numeric_limits<float>::infinity();

  float reference[2] = {-infinity, -infinity}; ///< −inf while a row has seen nothing
  float sum[2] = {0, 0};

  /// Writes the weights 2^(unit · s − reference) of a tile of scores, which are lost. Returns whether
  /// outputs summed so far must be multiplied by `factor`, which is set only then; the same for a
  /// whole warp.
  template <int Count>
  __device__ bool update(float (&s)[Count], float unit,
                         std::uint32_t (&weights)[Count / 2], float (&factor)[2]) {
    if (fresh_) {
      asm volatile("" : "+f"(unit)); // keeps what follows apart from the same below
      compare(s, unit);
    } else {
      compare(s, unit);
      float total[2] = {sum[0], sum[1]};
      const std::uint32_t bits = weigh(s, weights, total);
      if (!__any_sync(~0u, (bits & 0x40004000) != 0)) {
        sum[0] = total[0];
        sum[1] = total[1];
        return false;
      }
    }
    raise(s, factor);
    weigh(s, weights, sum);
    return true;
  }

  /// Adds up the quad's shares and returns row r's state over natural scores.
  __device__ softmax_state<float> finish(int r) const {
    float total = sum[r];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    return total > 0 ? softmax_state<float>{reference[r] * (1.0f / log2_e), total}
                     : softmax_state<float>{};
  }

private:
  bool fresh_ = true; ///< a row of the warp has no reference yet

  /// Scores in powers of two over the references.
  template <int Count>
  __device__ void compare(float (&s)[Count], float unit) const {
    const float shift[2] = {finite_reference(0), finite_reference(1)};
#pragma unroll
    for (int i = 0; i < Count; ++i) s[i] = s[i] * unit - shift[fragment_layout::row(i)];
  }

  /// The weights 2^t, added to the rows' sums; returns all bits that they have.
  template <int Count>
  static __device__ std::uint32_t weigh(const float (&t)[Count],
                                        std::uint32_t (&weights)[Count / 2], float (&total)[2]) {
    float second[2] = {0, 0}; // one chain a row would wait for each of its additions
    std::uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < Count; i += 2) {
      float& chain = ((i >> 2) & 1) == 0 ? total[fragment_layout::row(i)]
                                         : second[fragment_layout::row(i)];
      const float weight[2] = {ptx::exp2(t[i]), ptx::exp2(t[i + 1])};
      chain += weight[0];
      chain += weight[1];
      weights[i / 2] = ptx::pack<T>(weight[0], weight[1]);
      bits |= weights[i / 2];
    }
    total[0] += second[0];
    total[1] += second[1];
    return bits;
  }

  /// How far above the maximum a reference is put: a half would lose small weights.
  static constexpr float headroom = std::is_same_v<T, bfloat16> ? 7 : 0;

  /// While a row has seen nothing, 0 stands in: −inf − −inf would be NaN.
  __device__ float finite_reference(int r) const {
    return reference[r] == -infinity ? 0.0f : reference[r];
  }

  /// Moves references up with the rows' maxima; `t` are scores over the references.
  template <int Count>
  __device__ void raise(float (&t)[Count], float (&factor)[2]) {
    float rise[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = -infinity;
#pragma unroll
      for (int i = 0; i < Count; ++i) {
        if (fragment_layout::row(i) == r) top = fmaxf(top, t[i]);
      }
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      const float before = reference[r];
      const float shift = finite_reference(r);
      reference[r] = fmaxf(before, shift + (top + headroom));
      factor[r] = ptx::exp2(before - finite_reference(r)); // exactly 1 if they are equal
      sum[r] *= factor[r];
      rise[r] = finite_reference(r) - shift;
    }
    fresh_ = __any_sync(~0u, reference[0] == -infinity || reference[1] == -infinity);
#pragma unroll
    for (int i = 0; i < Count; ++i) t[i] -= rise[fragment_layout::row(i)];
  }
};

/// Multiplies a fragment's rows by their factors.
template <int Count>
__device__ inline void scale_rows(float (&fragment)[Count], const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) fragment[i] *= factor[fragment_layout::row(i)];
}

} // namespace maskring::cuda::detail
