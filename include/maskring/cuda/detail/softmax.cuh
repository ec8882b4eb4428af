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
/// 2^(unit · s), `unit` being log2(e) times the scale not yet multiplied in (which must be
/// positive).
///
/// Any reference near a row's maximum serves in its place, so `maximum` stays where it is until a
/// score exceeds it by 2^8, and a tile of scores is first asked whether one does: that takes no
/// exchange between the quad of lanes that share a row, and most tiles need no more. Each lane sums
/// only its own columns, until `finish`. Method of the lazy maximum: FlashAttention-4, 2026.
struct online_softmax {
  static constexpr float infinity = std::numeric_limits<float>::infinity();

  float maximum[2] = {-infinity, -infinity}; ///< the same in all lanes of a quad
  float sum[2] = {0, 0};

  /// Whether one of the lane's scores may ask for `raise` before they are weighed.
  ///
  /// The bits of floats compare like integers as soon as one of the two is positive, and integers
  /// have a maximum of three. Where all are negative this says yes.
  template <int Count>
  __device__ bool exceeded(const float (&s)[Count], float unit) const {
    // Two chains a row: one alone would wait for each of its operations.
    int top[2][2];
    for (int r = 0; r < 2; ++r) top[r][0] = top[r][1] = __float_as_int(-infinity);
#pragma unroll
    for (int i = 0; i < Count; i += 2) {
      int& chain = top[fragment_layout::row(i)][(i >> 2) & 1];
      chain = __vimax3_s32(chain, __float_as_int(s[i]), __float_as_int(s[i + 1]));
    }
    bool out = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int most = max(top[r][0], top[r][1]);
      out |= (most & __float_as_int(maximum[r])) < 0;
      out |= (__int_as_float(most) - maximum[r]) * unit > limit;
    }
    return out;
  }

  /// Moves maxima up where scores exceed them, and returns the factors by which outputs summed so
  /// far must be multiplied. All lanes of a warp together.
  template <int Count>
  __device__ void raise(const float (&s)[Count], float unit, float (&factor)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float tops[2] = {maximum[r], maximum[r]};
#pragma unroll
      for (int i = 2 * r; i < Count; i += 4) {
        tops[(i >> 2) & 1] = fmaxf(tops[(i >> 2) & 1], fmaxf(s[i], s[i + 1]));
      }
      float top = fmaxf(tops[0], tops[1]);
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      if ((top - maximum[r]) * unit <= limit) top = maximum[r];
      factor[r] = ptx::exp2((maximum[r] - (top == -infinity ? 0.0f : top)) * unit); // 1 if equal
      sum[r] *= factor[r];
      maximum[r] = top;
    }
  }

  /// Leaves the weights 2^(unit · (s − maximum)) in place of the scores.
  template <int Count>
  __device__ void weigh(float (&s)[Count], float unit) {
    float shift[2], second[2] = {0, 0};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // While a row has seen nothing, 0 stands in for its maximum: −inf − −inf would be NaN.
      shift[r] = maximum[r] == -infinity ? 0.0f : maximum[r] * unit;
    }
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      const int r = fragment_layout::row(i);
      s[i] = ptx::exp2(s[i] * unit - shift[r]);
      ((i >> 2) & 1 ? second : sum)[r] += s[i];
    }
    sum[0] += second[0];
    sum[1] += second[1];
  }

  /// Adds up the quad's shares and returns row r's state over natural scores scale · s.
  __device__ softmax_state<float> finish(int r, float scale) const {
    float total = sum[r];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    return total > 0 ? softmax_state<float>{maximum[r] * scale, total} : softmax_state<float>{};
  }

private:
  static constexpr float limit = 8; ///< by how much scores, in powers of two, may exceed a maximum
};

/// The same, asking for a maximum only after one was missed.
///
/// Any reference near a row's maximum serves in its place, so it may stay until a weight reaches 2,
/// which is one bit of the rounded weights: exponentials need not wait for a tile's maximum, and
/// seldom need it. References stand above the maximum by as much as T has digits to spare. Weights
/// leave rounded to T, in pairs.
template <class T>
struct optimistic_softmax {
  static constexpr float infinity = std::numeric_limits<float>::infinity();

  float reference[2] = {-infinity, -infinity}; ///< −inf while a row has seen nothing
  float sum[2] = {0, 0};

  /// Writes the weights 2^(unit · s_i − reference) of the first tile of scores s_i, which are lost.
  template <int Count>
  __device__ void begin(float (&s)[Count], float unit, std::uint32_t (&weights)[Count / 2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) reference[r] = row_maximum(s, r) * unit + headroom;
    note_fresh();
    compare(s, unit, [](float known, int) { return known; });
    weigh(s, weights, sum);
  }

  /// Writes the weights 2^(unit · modified(s_i, i) − reference) of a tile of scores s_i, which are
  /// lost. Returns whether outputs summed so far must be multiplied by `factor`, which is set only
  /// then; the same for a whole warp.
  ///
  /// The modifier is applied on the way, so that its special functions and the exponentials keep
  /// their unit busy together.
  template <int Count, class Modifier>
  __device__ bool update(float (&s)[Count], float unit, std::uint32_t (&weights)[Count / 2],
                         float (&factor)[2], const Modifier& modified) {
    compare(s, unit, modified);
    float total[2] = {sum[0], sum[1]};
    const std::uint32_t bits = fresh_ | weigh(s, weights, total);
    if (!__any_sync(~0u, (bits & missed) != 0)) [[likely]] {
      sum[0] = total[0];
      sum[1] = total[1];
      return false;
    }
    raise(s, factor);
    weigh(s, weights, sum);
    return true;
  }

  /// The same for registers `weights` that are not free until `ready()` has returned: before that
  /// the weights of the first `Early` scores are formed in registers of their own.
  template <int Early, int Count, class Modifier, class Ready>
  __device__ bool update_early(float (&s)[Count], float unit, std::uint32_t (&weights)[Count / 2],
                               float (&factor)[2], const Modifier& modified, const Ready& ready) {
    const float shift[2] = {finite_reference(0), finite_reference(1)};
    std::uint32_t first[Early / 2], bits = fresh_;
    float total[2] = {sum[0], sum[1]}, second[2] = {0, 0};
    const auto weigh_pair = [&](int i, std::uint32_t& word) {
      const int r = fragment_layout::row(i);
      s[i] = modified(s[i], i) * unit - shift[r];
      s[i + 1] = modified(s[i + 1], i + 1) * unit - shift[r];
      float(&chain)[2] = (i >> 2 & 1) == 0 ? total : second;
      const float weight[2] = {ptx::exp2(s[i]), ptx::exp2(s[i + 1])};
      chain[r] += weight[0];
      chain[r] += weight[1];
      word = ptx::pack<T>(weight[0], weight[1]);
      bits |= word;
    };
#pragma unroll
    for (int i = 0; i < Early; i += 2) weigh_pair(i, first[i / 2]);
#pragma unroll
    for (int i = 0; i < Early / 2; ++i) asm volatile("" : "+r"(first[i])::"memory"); // by now
    ready();
#pragma unroll
    for (int i = Early; i < Count; i += 2) weigh_pair(i, weights[i / 2]);
#pragma unroll
    for (int i = 0; i < Early / 2; ++i) weights[i] = first[i];
    if (!__any_sync(~0u, (bits & missed) != 0)) [[likely]] {
      sum[0] = total[0] + second[0];
      sum[1] = total[1] + second[1];
      return false;
    }
    raise(s, factor);
    weigh(s, weights, sum);
    return true;
  }

  /// The quad's shares of row r's sum, added up.
  __device__ float total(int r) const {
    float all = sum[r];
    all += __shfl_xor_sync(~0u, all, 1);
    all += __shfl_xor_sync(~0u, all, 2);
    return all;
  }

  /// Row r's state over natural scores, `total` being its sum.
  __device__ softmax_state<float> state(int r, float total) const {
    return total > 0 ? softmax_state<float>{reference[r] * (1.0f / log2_e), total}
                     : softmax_state<float>{};
  }

  /// Its log-sum-exp, in few instructions; −inf where it has seen nothing.
  __device__ float lse(int r, float total) const {
    return (reference[r] + __log2f(total)) * (1.0f / log2_e);
  }

private:
  /// In rounded weights, the bits that only those of 2 and more have.
  static constexpr std::uint32_t missed = 0x40004000;
  std::uint32_t fresh_ = missed; ///< 0 once all rows of the warp have references

  __device__ void note_fresh() {
    fresh_ = __any_sync(~0u, reference[0] == -infinity || reference[1] == -infinity) ? missed : 0;
  }

  /// Scores in powers of two over the references.
  template <int Count, class Modifier>
  __device__ void compare(float (&s)[Count], float unit, const Modifier& modified) const {
    const float shift[2] = {finite_reference(0), finite_reference(1)};
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      s[i] = modified(s[i], i) * unit - shift[fragment_layout::row(i)];
    }
  }

  /// The weights 2^t, added to the rows' sums; returns all bits that they have.
  template <int Count>
  static __device__ std::uint32_t weigh(const float (&t)[Count],
                                        std::uint32_t (&weights)[Count / 2], float (&total)[2]) {
    float second[2] = {0, 0}; // one chain a row would wait for each of its additions
    std::uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < Count; i += 2) {
      float(&chain)[2] = (i >> 2 & 1) == 0 ? total : second;
      const float weight[2] = {ptx::exp2(t[i]), ptx::exp2(t[i + 1])};
      chain[fragment_layout::row(i)] += weight[0];
      chain[fragment_layout::row(i)] += weight[1];
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

  /// The largest of row r's numbers, over the quad.
  template <int Count>
  static __device__ float row_maximum(const float (&t)[Count], int r) {
    float tops[2] = {-infinity, -infinity}; // one chain would wait for each operation
#pragma unroll
    for (int i = 2 * r; i < Count; i += 4) {
      tops[(i >> 2) & 1] = fmaxf(tops[(i >> 2) & 1], fmaxf(t[i], t[i + 1]));
    }
    float top = fmaxf(tops[0], tops[1]);
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    return fmaxf(top, __shfl_xor_sync(~0u, top, 2));
  }

  /// Moves references up with the rows' maxima; `t` are scores over the references.
  template <int Count>
  __device__ void raise(float (&t)[Count], float (&factor)[2]) {
    float rise[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float top = row_maximum(t, r);
      const float before = reference[r];
      const float shift = finite_reference(r);
      reference[r] = fmaxf(before, shift + (top + headroom));
      factor[r] = ptx::exp2(before - finite_reference(r)); // exactly 1 if they are equal
      sum[r] *= factor[r];
      rise[r] = finite_reference(r) - shift;
    }
    note_fresh();
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
