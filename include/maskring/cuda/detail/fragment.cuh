// SPDX-License-Identifier: Apache-2.0
// What a thread holds of a matrix product, and masks and score modifiers applied to it in
// registers.
#pragma once

#include <maskring/core/fast_float.hpp>
#include <maskring/core/float16.hpp>
#include <maskring/core/range.hpp>
#include <maskring/score/concepts.hpp>

#include <limits>
#include <type_traits>

namespace maskring::cuda::detail {

/// The layout of fp32 sums that mma.sync (m16n8) and wgmma share: a warp owns 16 rows, lane l holds
/// of each group of 8 columns c … c+7
///   entries 4i, 4i+1:    row l/4,      columns c + 2(l%4), +1
///   entries 4i+2, 4i+3:  row l/4 + 8,  the same columns.
/// Packed in pairs to 16 bits, two such groups are one A operand of 16 columns.
struct fragment_layout {
  static constexpr int rows_per_thread = 2;

  /// Which of the thread's two rows entry `i` belongs to.
  static constexpr int row(int i) { return (i >> 1) & 1; }
  /// The column of entry `i` for lane 0; other lanes lie first_column(lane) further right.
  static constexpr int column(int i) { return 8 * (i >> 2) + (i & 1); }

  static constexpr int first_row(int lane) { return lane / 4; }
  static constexpr int first_column(int lane) { return 2 * (lane % 4); }
};

/// Where a thread's scores lie in the problem: entry `i` of a fragment scores query
/// q + 8·row(i) against key kv + column(i).
struct score_origin {
  int batch, head, q, kv;
};

/// What kernels for elements T compute scores as: a half keeps more digits than tanh.approx gives.
template <class T>
using score_number = std::conditional_t<std::is_same_v<T, bfloat16>, fast_float, float>;

/// Replaces raw products by score(scale · product, b, h, q, kv).
///
/// What lies past the ends is never used, but a modifier's tables must not be read there: it is
/// asked about the nearest row or column instead. Inside, nothing stands between a modifier and the
/// constant distances of a thread's elements, so that terms of kv − q are shared by both rows. A
/// modifier that is `local_score` needs no such care, and no two ways that the assembler joins by
/// moving all scores.
template <class Number, class Score, int Count>
__device__ inline void apply_score(float (&s)[Count], const Score& score, float scale,
                                   score_origin at, int q_len, int kv_len) {
  if constexpr (local_score<Score>) {
    const auto near = score.from(at.q, at.kv);
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      s[i] = static_cast<float>(
          near(Number{s[i] * scale}, 8 * fragment_layout::row(i), fragment_layout::column(i)));
    }
    return;
  }
  const auto apply = [&](auto row, auto column) {
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      s[i] = static_cast<float>(score(Number{s[i] * scale}, at.batch, at.head,
                                      row(at.q + 8 * fragment_layout::row(i)),
                                      column(at.kv + fragment_layout::column(i))));
      // Loads from tables ahead of all scores would take as many registers.
      if (learnable_score<Score> && i % 16 == 15) __syncwarp();
    }
  };
  if (at.q >= 0 && at.q + 8 < q_len && at.kv + fragment_layout::column(Count - 1) < kv_len) {
    const auto same = [](int index) { return index; };
    apply(same, same);
  } else {
    apply([&](int q) { return max(min(q, q_len - 1), 0); },
          [&](int kv) { return min(kv, kv_len - 1); });
  }
}

/// Writes −inf where the mask hides the pair, and past the last key.
///
/// The mask is asked about every element, past the ends about the last one instead: with no branch
/// in between, what it computes or reads for a row or a column is shared by its elements.
template <class Mask, int Count>
__device__ inline void apply_mask(float (&s)[Count], const Mask& mask, score_origin at, int q_len,
                                  int kv_len) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  if (at.q + 8 < q_len && at.kv + fragment_layout::column(Count - 1) < kv_len) {
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      const bool keep =
          static_cast<bool>(mask(at.batch, at.head, at.q + 8 * fragment_layout::row(i),
                                 at.kv + fragment_layout::column(i)));
      s[i] = keep ? s[i] : -infinity;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const int q = min(at.q + 8 * fragment_layout::row(i), q_len - 1);
    const int kv = at.kv + fragment_layout::column(i);
    const bool keep = static_cast<bool>(mask(at.batch, at.head, q, min(kv, kv_len - 1)));
    s[i] = keep & (kv < kv_len) ? s[i] : -infinity;
  }
}

} // namespace maskring::cuda::detail
