// SPDX-License-Identifier: Apache-2.0
// The Hopper forward kernel's end of a query tile: merge, normalise, store.
//
// Rounded results go through shared memory to the copy engine if the policy has room for them, else
// straight from registers to device memory: lanes of a quad first swap words so that each stores 16
// bytes.
#pragma once

#include <maskring/core/softmax.hpp>
#include <maskring/cuda/detail/ptx/element.cuh>
#include <maskring/cuda/detail/ptx/ldmatrix.cuh>
#include <maskring/cuda/detail/sm90/arguments.cuh>
#include <maskring/cuda/detail/softmax.cuh>
#include <maskring/shard/packed_heads.hpp>

#include <cmath>

namespace maskring::cuda::detail::sm90 {

/// Transposes 4 × 4 words over the four lanes of a quad: lane c ends with word c of each lane.
__device__ inline void transpose_quad(std::uint32_t (&word)[4]) {
  const bool odd = threadIdx.x & 1;
  const bool high = threadIdx.x & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) { // 2 × 2 within pairs of lanes
    const std::uint32_t sent = odd ? word[i] : word[i + 1];
    const std::uint32_t got = __shfl_xor_sync(~0u, sent, 1);
    word[i] = odd ? got : word[i];
    word[i + 1] = odd ? word[i + 1] : got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) { // then 2 × 2 of such blocks
    const std::uint32_t sent = high ? word[i] : word[i + 2];
    const std::uint32_t got = __shfl_xor_sync(~0u, sent, 2);
    word[i] = high ? got : word[i];
    word[i + 2] = high ? word[i + 2] : got;
  }
}

/// The state of a thread's row r with the carried state and the sink merged in, and the factors
/// that turn this call's sums and the carried output into shares of the result.
struct row_shares {
  float own, carried, lse;

  using state = softmax_state<float>;

  template <class Arguments>
  __device__ row_shares(const Arguments& args, const work_item& item, int q, state mine) {
    const bool continues = args.previous.lse.data != nullptr && args.has_row(q);
    const state before =
        continues ? state::from_lse(args.previous.lse(item.batch, item.head, q)) : state{};
    state all = merge(mine, before);
    if (args.sink.data != nullptr) {
      all = merge(all, state::from_lse(args.sink(shard::query_head(args.mask, item.head, q))));
    }
    own = mine.empty() ? 0.0f : rescale_factor(mine.maximum, all.maximum) / all.sum;
    carried = before.empty() ? 0.0f : rescale_factor(before.maximum, all.maximum) / all.sum;
    lse = all.lse();
  }
};

/// What turns sums of this thread's two rows into results.
struct row_factors {
  float own[2];              ///< of this call's sums
  float carried[2] = {0, 0}; ///< of the carried output
};

/// The factors of this thread's two rows, `q` and q + 8, whose log-sum-exp it stores; its columns
/// begin at `column`. Before the rows' last product with V is there.
template <class Arguments>
__device__ row_factors
finish_states(const Arguments& args, const work_item& item, int q, int column,
              const optimistic_softmax<typename Arguments::input_type>& rows) {
  const float total[2] = {rows.total(0), rows.total(1)};
  row_factors factors;
  float lse[2];
  if (args.previous.lse.data == nullptr && args.sink.data == nullptr) [[likely]] {
#pragma unroll
    for (int r = 0; r < 2; ++r) { // nothing to merge
      lse[r] = rows.lse(r, total[r]);
      factors.own[r] = total[r] == 0 ? 0.0f : __fdividef(1.0f, total[r]);
    }
  } else {
    for (int r = 0; r < 2; ++r) {
      const row_shares shares{args, item, q + 8 * r, rows.state(r, total[r])};
      lse[r] = shares.lse;
      factors.own[r] = shares.own;
      factors.carried[r] = shares.carried;
    }
  }
  if (column == 0 && args.lse.data != nullptr) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (args.has_row(q + 8 * r)) args.lse(item.batch, item.head, q + 8 * r) = lse[r];
    }
  }
  return factors;
}

/// Normalises this thread's part of its two rows and merges the carried output in.
template <class Arguments>
__device__ void finish_rows(const Arguments& args, const work_item& item, int q, int column,
                            float (&out)[Arguments::policy.v_dim / 2], const row_factors& factors) {
  constexpr forward_policy P = Arguments::policy;
  scale_rows(out, factors.own);
  if (factors.carried[0] == 0 && factors.carried[1] == 0) [[likely]]
    return;
  const int v_dim = static_cast<int>(args.out.extents[3]);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = q + 8 * r;
    if (factors.carried[r] == 0 || !args.has_row(row)) continue;
    const float* before = &args.previous.out(item.batch, item.head, row, column);
#pragma unroll
    for (int i = 0; i < P.v_dim / 8; ++i) {
      if (8 * i >= v_dim) break;
      out[4 * i + 2 * r] += factors.carried[r] * before[8 * i];
      out[4 * i + 2 * r + 1] += factors.carried[r] * before[8 * i + 1];
    }
  }
}

/// Stores finished rows from registers.
template <class Arguments>
__device__ void store_rows(const Arguments& args, const work_item& item, int q, int column,
                           const float (&out)[Arguments::policy.v_dim / 2]) {
  constexpr forward_policy P = Arguments::policy;
  using element = typename Arguments::output_type;
  const int v_dim = static_cast<int>(args.out.extents[3]);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = q + 8 * r;
    const bool stored = args.has_row(row);
    element* destination = stored ? &args.out(item.batch, item.head, row, 0) : nullptr;
    if constexpr (std::is_same_v<element, float>) {
#pragma unroll
      for (int i = 0; i < P.v_dim / 8; ++i) {
        if (stored && 8 * i < v_dim) {
          *reinterpret_cast<float2*>(destination + 8 * i + column) =
              make_float2(out[4 * i + 2 * r], out[4 * i + 2 * r + 1]);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < P.v_dim / 8; i += 4) {
        std::uint32_t word[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          word[j] = ptx::pack<element>(out[4 * (i + j) + 2 * r], out[4 * (i + j) + 2 * r + 1]);
        }
        transpose_quad(word);
        const int first = 8 * i + 4 * column; // lane c of the quad, at column 2c, has group i + c
        if (stored && first < v_dim) {
          *reinterpret_cast<uint4*>(destination + first) =
              make_uint4(word[0], word[1], word[2], word[3]);
        }
      }
    }
  }
}

/// Writes a warp's 16 finished rows, from row `first` of the tile on, to shared memory as T.
template <class T, operand_layout Layout, int Count>
__device__ void stage_rows(std::byte* tile, int first, int lane, const float (&out)[Count]) {
  const int row = first + lane % 16; // matrices 0 and 1 hold rows 0 … 7 and 8 … 15 of 8 columns
  const auto begin = static_cast<std::uint32_t>(__cvta_generic_to_shared(tile)) +
                     static_cast<std::uint32_t>(Layout.offset(row, lane / 16));
#pragma unroll
  for (int i = 0; i < Count / 8; ++i) {
    std::uint32_t word[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) word[m] = ptx::pack<T>(out[8 * i + 2 * m], out[8 * i + 2 * m + 1]);
    ptx::store_matrices(Layout.columns_on(begin, i), word);
  }
}

/// The state that an earlier call left of this thread's two rows, `q` and q + 8.
template <class Arguments>
__device__ void load_states(const Arguments& args, const work_item& item, int q,
                            float (&out)[Arguments::policy.v_dim / 2],
                            optimistic_softmax<typename Arguments::input_type>& rows) {
  constexpr forward_policy P = Arguments::policy;
  const int lane = static_cast<int>(threadIdx.x) % 4;
  const int width = static_cast<int>(args.states.sums.extents[3]);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = q + 8 * r;
    const bool stored = args.has_row(row);
    const float* sums = stored ? &args.states.sums(item.batch, item.head, row, 4 * lane) : nullptr;
#pragma unroll
    for (int i = 0; i < P.v_dim / 8; i += 2) {
      const float4 four = stored && 8 * i < width ? *reinterpret_cast<const float4*>(sums + 8 * i)
                                                  : float4{0, 0, 0, 0};
      out[4 * i + 2 * r] = four.x, out[4 * i + 2 * r + 1] = four.y;
      out[4 * i + 4 + 2 * r] = four.z, out[4 * i + 5 + 2 * r] = four.w;
    }
    if (stored) {
      rows.reference[r] = args.states.maximum(item.batch, item.head, row);
      rows.sum[r] = lane == 0 ? args.states.total(item.batch, item.head, row) : 0.0f;
    }
  }
}

/// Leaves it to the next.
template <class Arguments>
__device__ void store_states(const Arguments& args, const work_item& item, int q,
                             const float (&out)[Arguments::policy.v_dim / 2],
                             const optimistic_softmax<typename Arguments::input_type>& rows) {
  constexpr forward_policy P = Arguments::policy;
  const int lane = static_cast<int>(threadIdx.x) % 4;
  const int width = static_cast<int>(args.states.sums.extents[3]);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = q + 8 * r;
    const float total = rows.total(r);
    if (!args.has_row(row)) continue;
    if (lane == 0) {
      args.states.maximum(item.batch, item.head, row) = rows.reference[r];
      args.states.total(item.batch, item.head, row) = total;
    }
    float* sums = &args.states.sums(item.batch, item.head, row, 4 * lane);
#pragma unroll
    for (int i = 0; i < P.v_dim / 8; i += 2) {
      if (8 * i >= width) break;
      *reinterpret_cast<float4*>(sums + 8 * i) =
          float4{out[4 * i + 2 * r], out[4 * i + 2 * r + 1], out[4 * i + 4 + 2 * r],
                 out[4 * i + 5 + 2 * r]};
    }
  }
}

/// For rows that see nothing in a call of several.
template <class Arguments>
__device__ void pass_unseen_states(const Arguments& args, const work_item& item, int q,
                                   int column) {
  if (item.idle() || (item.continues() && item.stays_open())) return;
  for (int r = 0; r < 2; ++r) {
    const int row = q + 8 * r;
    if (!args.has_row(row)) continue;
    float& maximum = args.states.maximum(item.batch, item.head, row);
    float& total = args.states.total(item.batch, item.head, row);
    float* sums = &args.states.sums(item.batch, item.head, row, 0);
    if (item.stays_open()) { // begins with nothing
      if (column == 0) maximum = -online_softmax::infinity, total = 0;
      for (int c = column; c < args.states.sums.extents[3]; c += 8) {
        sums[row_states::place(c)] = sums[row_states::place(c) + 1] = 0;
      }
      continue;
    }
    const bool seen = item.continues() && total > 0;
    const row_shares shares{args, item, row,
                            seen ? softmax_state<float>{maximum * (1.0f / log2_e), total}
                                 : softmax_state<float>{}};
    if (column == 0 && args.lse.data != nullptr) args.lse(item.batch, item.head, row) = shares.lse;
    for (int c = column; c < args.out.extents[3]; c += 8) {
      for (int i = 0; i < 2; ++i) {
        float value = shares.own == 0 ? 0.0f : shares.own * sums[row_states::place(c) + i];
        if (shares.carried != 0) {
          value += shares.carried * args.previous.out(item.batch, item.head, row, c + i);
        }
        args.out(item.batch, item.head, row, c + i) =
            static_cast<typename Arguments::output_type>(value);
      }
    }
  }
}

/// The same for rows that see nothing: the carried output if there is one, otherwise 0.
template <class Arguments>
__device__ void store_unseen_rows(const Arguments& args, const work_item& item, int q, int column) {
  using element = typename Arguments::output_type;
  for (int r = 0; r < 2; ++r) {
    const int row = q + 8 * r;
    if (!args.has_row(row)) continue;
    const row_shares shares{args, item, row, softmax_state<float>{}};
    if (column == 0 && args.lse.data != nullptr) args.lse(item.batch, item.head, row) = shares.lse;
    for (int c = column; c < args.out.extents[3]; c += 8) {
      for (int i = c; i < c + 2; ++i) {
        const float value = shares.carried == 0
                                ? 0.0f
                                : shares.carried * args.previous.out(item.batch, item.head, row, i);
        args.out(item.batch, item.head, row, i) = static_cast<element>(value);
      }
    }
  }
}

} // namespace maskring::cuda::detail::sm90
