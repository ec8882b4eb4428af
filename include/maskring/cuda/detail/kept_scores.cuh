// SPDX-License-Identifier: Apache-2.0
// Partial tiles, looked at more closely: the descent on verdicts goes on in blocks of 16 queries
// and 16 keys, and elements are evaluated only in blocks that are partial themselves.
#pragma once

#include <maskring/cuda/detail/fragment.cuh>
#include <maskring/mask/concepts.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

namespace maskring::cuda::detail {

/// What the mask keeps of the block of queries [q, q + rows) and keys [kv, kv + keys). Rows and
/// keys past the ends count as hidden. `args` holds the mask and the lengths.
template <class Arguments>
__device__ verdict block_verdict(const Arguments& args, int batch, int head, int q, int rows,
                                 int kv, int keys) {
  const int end = min(q + rows, args.q_len);
  if (Arguments::policy.tile.from_end) q = max(q, 0);
  if (q >= end || kv >= args.kv_len) return verdict::none;
  const verdict inside = verdict_of(args.mask, {.q = {q, end - 1},
                                                .kv = {kv, min(kv + keys, args.kv_len) - 1},
                                                .batch = batch,
                                                .head = head});
  return inside == verdict::all && kv + keys > args.kv_len ? verdict::some : inside;
}

/// Which of a lane's 8 elements of a block of 16 × 16 are kept, as bits; `at` is the first. What
/// lies past the ends is hidden. Rows are queries, or keys if `Transposed`.
template <bool Transposed = false, class Arguments>
__device__ std::uint32_t kept_elements(const Arguments& args, score_origin at) {
  std::uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int row = 8 * fragment_layout::row(i), column = fragment_layout::column(i);
    int q = min(at.q + (Transposed ? column : row), args.q_len - 1);
    if (Arguments::policy.tile.from_end) q = max(q, 0);
    const int kv = at.kv + (Transposed ? row : column);
    const bool keep = static_cast<bool>(args.mask(at.batch, at.head, q, min(kv, args.kv_len - 1)));
    bits |= static_cast<std::uint32_t>(keep & (kv < args.kv_len)) << i;
  }
  return bits;
}

/// Four blocks' bits, one block to a byte: all 8 or none.
__device__ inline std::uint32_t spread(std::uint32_t blocks, int word) {
  return ((blocks >> 4 * word & 15) * 0x00204081 & 0x01010101) * 0xff;
}

/// Adds the kept elements of a strip's `some` blocks to a lane's bits.
template <class Arguments, int Words>
__device__ void add_elements(const Arguments& args, std::uint32_t some, score_origin at,
                             std::uint32_t (&bits)[Words]) {
#pragma unroll 1
  for (; some != 0; some &= some - 1) {
    const int block = __ffs(some) - 1;
    const std::uint32_t kept = kept_elements(args, {at.batch, at.head, at.q, at.kv + 16 * block});
#pragma unroll
    for (int w = 0; w < Words; ++w) bits[w] |= (block / 4 == w ? kept : 0) << block % 4 * 8;
  }
}

/// What questions about a partial tile need of a kernel's arguments. What follows from the mask
/// alone is computed again for each tile: kept from one to the next it would take registers that
/// the steps between them need.
template <class Arguments>
struct mask_question {
  static constexpr auto policy = Arguments::policy;
  decltype(Arguments::mask) mask;
  int q_len, kv_len;

  __device__ explicit mask_question(const Arguments& args)
      : mask{args.mask}, q_len{args.q_len}, kv_len{args.kv_len} {
    if constexpr (sizeof(mask) % 4 == 0) {
      std::uint32_t word[sizeof(mask) / 4];
      std::memcpy(word, &mask, sizeof(mask));
#pragma unroll
      for (std::uint32_t& w : word) asm volatile("" : "+r"(w));
      std::memcpy(&mask, word, sizeof(mask));
    }
  }
};

/// Which of a thread's scores of 16 rows and `Columns` keys are kept.
template <int Columns>
class kept_scores {
  static constexpr int blocks = Columns / 16; // of 8 of the thread's scores each
  static constexpr int words = (blocks + 3) / 4;

public:
  /// Evaluates the blocks of `some`, a bit each; those of `all` are kept, others hidden.
  template <class Arguments>
  __device__ kept_scores(const Arguments& args, std::uint32_t some, std::uint32_t all,
                         score_origin at)
      : all_{all} {
#pragma unroll
    for (int w = 0; w < words; ++w) kept_[w] = spread(all, w);
    add_elements(args, some, at, kept_);
  }

  /// `known` says which scores are kept but for those of `some`, by lane.
  template <class Arguments>
  __device__ kept_scores(const Arguments& args, std::uint32_t some, std::uint32_t all,
                         const std::uint32_t (&known)[words][32], score_origin at)
      : all_{all} {
#pragma unroll
    for (int w = 0; w < words; ++w) kept_[w] = known[w][threadIdx.x % 32];
    add_elements(args, some, at, kept_);
  }

  /// −inf for the others.
  template <int Count>
  __device__ void apply(float (&s)[Count]) const {
#pragma unroll
    for (int w = 0; w < words; ++w) {
      const std::uint32_t here = ((1u << blocks) - 1) >> 4 * w & 15;
      if ((all_ >> 4 * w & here) == here) continue;
#pragma unroll
      for (int i = 32 * w; i < std::min(32 * w + 32, Count); ++i) {
        s[i] = (kept_[w] >> i % 32 & 1) != 0 ? s[i] : -std::numeric_limits<float>::infinity();
      }
    }
  }

private:
  std::uint32_t all_;         ///< blocks that are all kept
  std::uint32_t kept_[words]; ///< bit i: score i
};

} // namespace maskring::cuda::detail
