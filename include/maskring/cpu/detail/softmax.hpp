// SPDX-License-Identifier: Apache-2.0
// The element-wise halves of attention over a block of transposed scores [key][query lane].
#pragma once

#include <maskring/cpu/detail/rows.hpp>

#include <limits>

namespace maskring::cpu::detail {

inline constexpr double log2_e_double = 1.44269504088896340736;
inline constexpr auto log2_e = static_cast<float>(log2_e_double);
inline constexpr float infinity = std::numeric_limits<float>::infinity();

/// The online softmax of one block of queries: per lane the maximum score so far (base 2, rounded
/// to an integer, so that rescaling is exact) and the sum of 2^(score − maximum), and the weighted
/// sum of values, transposed: [v_dim][lane].
struct running_rows {
  float maximum[query_block];
  float sum[query_block];
  float* out;
  index_t v_dim;
};

/// Takes a block of scores (base 2; −inf: masked) into the running state and replaces them by their
/// weights 2^(score − maximum).
struct softmax_kernel {
  float* scores;
  int keys;
  int lanes; ///< padded
  running_rows& state;

  template <class Isa>
  MASKRING_INLINE void operator()(Isa) const {
    int lane = 0;
    for (; lane + Isa::vectors * Isa::lanes <= lanes; lane += Isa::vectors * Isa::lanes) {
      columns<Isa, Isa::vectors>(lane);
    }
    for (; lane < lanes; lane += Isa::lanes) columns<Isa, 1>(lane);
  }

  template <class Isa, int Vectors>
  MASKRING_INLINE void columns(int lane) const {
    using simd = detail::simd<Isa>;
    using reg = typename Isa::reg;
    reg maximum[Vectors], shift[Vectors], factor[Vectors], before[Vectors], sum[Vectors];
    reg zero{}, empty;
    simd::fill(empty, -infinity);
    MASKRING_UNROLL
    for (int v = 0; v < Vectors; ++v) simd::load(maximum[v], state.maximum + lane + v * Isa::lanes);
    for (int k = 0; k < keys; ++k) {
      MASKRING_UNROLL
      for (int v = 0; v < Vectors; ++v) {
        reg s;
        simd::load(s, scores + k * query_block + lane + v * Isa::lanes);
        simd::raise(maximum[v], s);
      }
    }
    bool rescale = false;
    MASKRING_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      const int at = lane + v * Isa::lanes;
      simd::round(maximum[v]);
      // A row that has seen nothing keeps its maximum of −inf; subtracting 0 then avoids inf − inf.
      shift[v] = maximum[v] == empty ? zero : maximum[v];
      simd::load(factor[v], state.maximum + at);
      factor[v] -= shift[v];
      simd::exp2(factor[v]);
      simd::load(before[v], state.sum + at);
      before[v] *= factor[v];
      sum[v] = zero;
      simd::store(maximum[v], state.maximum + at);
      for (int i = 0; i < Isa::lanes; ++i) rescale |= factor[v][i] != 1.0f;
    }
    for (int k = 0; k < keys;) {
      reg part[Vectors] = {}; // short sums of short sums round less
      for (const int end = min(keys, k + 16); k < end; ++k) {
        MASKRING_UNROLL
        for (int v = 0; v < Vectors; ++v) {
          float* at = scores + k * query_block + lane + v * Isa::lanes;
          reg s;
          simd::load(s, at);
          s -= shift[v];
          simd::exp2(s);
          simd::store(s, at);
          part[v] += s;
        }
      }
      MASKRING_UNROLL
      for (int v = 0; v < Vectors; ++v) sum[v] += part[v];
    }
    MASKRING_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      sum[v] += before[v]; // last, so that a large sum rounds once a block instead of once a key
      simd::store(sum[v], state.sum + lane + v * Isa::lanes);
    }
    if (!rescale) return;
    for (index_t d = 0; d < state.v_dim; ++d) {
      MASKRING_UNROLL
      for (int v = 0; v < Vectors; ++v) {
        float* at = state.out + d * query_block + lane + v * Isa::lanes;
        reg o;
        simd::load(o, at);
        o *= factor[v];
        simd::store(o, at);
      }
    }
  }
};

/// The backward pass of the softmax: replaces scores by the weights p = 2^(score − lse), and the
/// gradients g of the weights by those of the unscaled scores, p·(g − delta)·factor, times the
/// score modifier's derivative where there is one.
struct softmax_gradient_kernel {
  float* scores;
  float* gradients;
  const float* derivatives; ///< of the score modifier, or null
  const float* lse;         ///< per lane, base 2; +inf for rows that see nothing
  const float* delta;       ///< per lane: Σ dout·out − dlse
  float factor;
  int keys;
  int lanes;      ///< padded
  float& largest; ///< of the weights

  template <class Isa>
  MASKRING_INLINE void operator()(Isa) const {
    using simd = detail::simd<Isa>;
    using reg = typename Isa::reg;
    reg top{};
    for (int lane = 0; lane < lanes; lane += Isa::lanes) {
      reg shift, row;
      simd::load(shift, lse + lane);
      simd::load(row, delta + lane);
      for (int k = 0; k < keys; ++k) {
        const int at = k * query_block + lane;
        reg p, g;
        simd::load(p, scores + at);
        simd::load(g, gradients + at);
        p -= shift;
        simd::exp2(p);
        g = (g - row) * p * factor;
        if (derivatives) {
          reg slope;
          simd::load(slope, derivatives + at);
          g *= slope;
        }
        simd::store(p, scores + at);
        simd::store(g, gradients + at);
        simd::raise(top, p);
      }
    }
    largest = 0;
    for (int i = 0; i < Isa::lanes; ++i) largest = largest > top[i] ? largest : top[i];
  }
};

} // namespace maskring::cpu::detail
