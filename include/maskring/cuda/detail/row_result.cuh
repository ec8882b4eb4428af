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
  view<float, 3> lse;        ///< null: not wanted
  carried previous;          ///< null: nothing carried
  view<const float, 1> sink; ///< null: none
};

/// The factors that turn a row's sums, and the carried output, into shares of the result.
struct row_shares {
  float own, carried, lse;

  /// @param sink_head the query head of the row, which h is not where heads are packed.
  __device__ row_shares(const row_target& target, softmax_state<float> mine, int b, int h, int q,
                        int sink_head) {
    using state = softmax_state<float>;
    const bool continues = target.previous.lse.data != nullptr && q < target.out.length;
    const state before = continues ? state::from_lse(target.previous.lse(b, h, q)) : state{};
    state all = merge(mine, before);
    if (target.sink.data != nullptr) all = merge(all, state::from_lse(target.sink(sink_head)));
    own = mine.empty() ? 0.0f : rescale_factor(mine.maximum, all.maximum) / all.sum;
    carried = before.empty() ? 0.0f : rescale_factor(before.maximum, all.maximum) / all.sum;
    lse = all.lse();
  }
};

/// Eight rows of a warp's results on their way out, in shared memory: a loop can walk through
/// memory, not through registers, and code that runs once a block costs its fetching.
template <int Columns>
class staged_rows {
  static constexpr int chunks = Columns / 8;
  static_assert(chunks % 4 == 0);

public:
  __device__ explicit staged_rows(float* memory) : memory_{memory} {}

  /// Takes entries 2r, 2r + 1 of each group of four of a fragment, multiplied by `scale`.
  __device__ void put(const float (&sums)[Columns / 2], int r, float scale) const {
#pragma unroll
    for (int i = 0; i < chunks; ++i) {
      *reinterpret_cast<float2*>(chunk(lane() / 4, i) + 2 * (lane() % 4)) =
          make_float2(sums[4 * i + 2 * r] * scale, sums[4 * i + 2 * r + 1] * scale);
    }
  }

  /// Stores them as rows q … q + 7. `carried` is the share of the carried output in lane / 4's row.
  template <class T>
  __device__ void store(const row_target& target, int b, int h, int q, float carried) const {
    if (!target.out.is_float && target.out.vectors && target.previous.lse.data == nullptr) {
      store_plain<T>(target.out, b, h, q);
      return;
    }
#pragma unroll 1
    for (int i = lane(); i < 8 * chunks; i += 32) {
      const int row = i / chunks, column = i % chunks * 8;
      const float share = __shfl_sync(~0u, carried, 4 * row);
      if (q + row >= target.out.length || column >= target.out.dim) continue;
      float value[8];
      get(value, i);
      if (share != 0) {
        const float* before = &target.previous.out(b, h, q + row, column);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          if (column + e < target.out.dim) value[e] += share * before[e];
        }
      }
      store_chunk<T>(target.out, b, h, q + row, column, value);
    }
  }

private:
  /// The usual case: 16-bit elements in whole chunks, nothing carried.
  template <class T>
  __device__ void store_plain(const row_store& out, int b, int h, int q) const {
    const index_t start = b * out.strides[0] + h * out.strides[1] + q * out.strides[2];
#pragma unroll
    for (int at = 0; at < 8 * chunks; at += 32) {
      const int i = at + lane(), row = i / chunks, column = i % chunks * 8;
      float value[8];
      get(value, i);
      std::uint32_t word[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) word[w] = ptx::pack<T>(value[2 * w], value[2 * w + 1]);
      if (q + row < out.length && column < out.dim) {
        *reinterpret_cast<uint4*>(static_cast<std::uint16_t*>(out.data) + start +
                                  row * out.strides[2] + column) =
            make_uint4(word[0], word[1], word[2], word[3]);
      }
    }
  }

  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }

  __device__ void get(float (&value)[8], int i) const {
    const float4* at = reinterpret_cast<const float4*>(chunk(i / chunks, i % chunks));
    const float4 low = at[0], high = at[1];
    value[0] = low.x, value[1] = low.y, value[2] = low.z, value[3] = low.w;
    value[4] = high.x, value[5] = high.y, value[6] = high.z, value[7] = high.w;
  }

  /// Chunks of 8 columns are permuted, so that those of one column lie in different banks.
  __device__ float* chunk(int row, int i) const {
    return memory_ + row * Columns + (i ^ (row & (chunks % 8 == 0 ? 7 : 3))) * 8;
  }

  float* memory_;
};

} // namespace maskring::cuda::detail
