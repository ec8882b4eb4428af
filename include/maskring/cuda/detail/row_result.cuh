// SPDX-License-Identifier: Apache-2.0
// The end of a forward row: its state merged with what was carried in and the sink, and stored.
#pragma once

#include <maskring/core/problem.hpp>
#include <maskring/core/softmax.hpp>
#include <maskring/cuda/detail/store.cuh>

namespace maskring::cuda::detail {

/// Where the rows of a forward call end up, and what joins them there.
struct row_target {
  row_store out;
  view<float, 3> lse;         ///< null: not wanted
  carried previous;           ///< null: nothing carried
  view<const float, 1> sink;  ///< null: none
};

/// The factors that turn a row's sums, and the carried output, into shares of the result.
struct row_shares {
  float own, carried, lse;

  __device__ row_shares(const row_target& target, softmax_state<float> mine, int b, int h, int q) {
    using state = softmax_state<float>;
    const bool continues = target.previous.lse.data != nullptr && q < target.out.length;
    const state before = continues ? state::from_lse(target.previous.lse(b, h, q)) : state{};
    state all = merge(mine, before);
    if (target.sink.data != nullptr) all = merge(all, state::from_lse(target.sink(h)));
    own = mine.empty() ? 0.0f : rescale_factor(mine.maximum, all.maximum) / all.sum;
    carried = before.empty() ? 0.0f : rescale_factor(before.maximum, all.maximum) / all.sum;
    lse = all.lse();
  }
};

/// Stores row `q`, of which the lanes of a quad hold the sums: entries 2r, 2r + 1 of each group of
/// four, laid out as fragment_layout says. Called by whole warps.
template <class T, int Count>
__device__ inline void store_result(const row_target& target, int b, int h, int q,
                                    softmax_state<float> state, const float (&sums)[Count], int r) {
  const row_shares shares{target, state, b, h, q};
  const int lane = static_cast<int>(threadIdx.x) % 4;
  if (q < target.out.length && lane == 0 && target.lse.data != nullptr) {
    target.lse(b, h, q) = shares.lse;
  }
  const float* before = shares.carried != 0 ? &target.previous.out(b, h, q, 0) : nullptr;
#pragma unroll
  for (int first = 0; first < Count * 2; first += 32) {
    float value[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int column = first + 8 * (i / 2) + 2 * lane + i % 2;
      value[i] = sums[first / 2 + 4 * (i / 2) + 2 * r + i % 2] * shares.own;
      if (before != nullptr && column < target.out.dim) value[i] += shares.carried * before[column];
    }
    store_quad<T>(target.out, b, h, q, first, value);
  }
}

}  // namespace maskring::cuda::detail
