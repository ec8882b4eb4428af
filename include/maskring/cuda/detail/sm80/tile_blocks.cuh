// SPDX-License-Identifier: Apache-2.0
// A partial tile looked at more closely: the descent on verdicts goes on in blocks of 16 × 16.
#pragma once

#include <maskring/cuda/detail/fragment.cuh>
#include <maskring/mask/concepts.hpp>

#include <cstdint>
#include <type_traits>

namespace maskring::cuda::detail::sm80 {

/// A set of the blocks of a tile of `Rows` × `Columns` blocks.
template <int Rows, int Columns>
struct block_set {
  static_assert(Rows * Columns <= 64);
  using word = std::conditional_t<Rows * Columns <= 32, std::uint32_t, std::uint64_t>;
  word bits = 0;

  __device__ bool has(int row, int column) const { return bits >> (row * Columns + column) & 1; }
  /// The set as counted from another block.
  __device__ block_set from(int row, int column) const {
    return {static_cast<word>(bits >> (row * Columns + column))};
  }
};

/// Of every tile that the map calls full.
struct all_blocks {
  static constexpr std::true_type has(int, int) { return {}; }
  static constexpr all_blocks from(int, int) { return {}; }
};

/// What a mask keeps of the blocks of a partial tile.
template <int Rows, int Columns>
struct tile_blocks {
  using set = block_set<Rows, Columns>;
  set seen; ///< partly or as a whole
  set some; ///< partly

  /// Of the tile that begins at query `q` and key `kv`; rows and keys past the end are hidden. By
  /// whole warps: each lane asks the mask about a block.
  template <class Arguments>
  __device__ static tile_blocks of(const Arguments& args, int batch, int head, int q, int kv) {
    tile_blocks out;
#pragma unroll
    for (int first = 0; first < Rows * Columns; first += 32) {
      const int block = first + static_cast<int>(threadIdx.x) % 32;
      const verdict v = block < Rows * Columns ? ask(args, batch, head, q + block / Columns * 16,
                                                     kv + block % Columns * 16)
                                               : verdict::none;
      using word = typename set::word;
      out.seen.bits |= static_cast<word>(__ballot_sync(~0u, v != verdict::none)) << first;
      out.some.bits |= static_cast<word>(__ballot_sync(~0u, v == verdict::some)) << first;
    }
    return out;
  }

private:
  template <class Arguments>
  __device__ static verdict ask(const Arguments& args, int batch, int head, int q, int kv) {
    if (q >= args.q_len || kv >= args.kv_len) return verdict::none;
    const verdict inside = verdict_of(args.mask, {.q = {q, min(q + 15, args.q_len - 1)},
                                                  .kv = {kv, min(kv + 15, args.kv_len - 1)},
                                                  .batch = batch,
                                                  .head = head});
    return inside == verdict::all && kv + 16 > args.kv_len ? verdict::some : inside;
  }
};

/// Bit i: whether the mask keeps entry i of a thread's 8 of a block. What lies past the ends is
/// hidden.
template <class Arguments>
__device__ inline std::uint32_t kept_of_block(const Arguments& args, score_origin at) {
  std::uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int q = min(at.q + 8 * fragment_layout::row(i), args.q_len - 1);
    const int kv = at.kv + fragment_layout::column(i);
    const bool keep = static_cast<bool>(args.mask(at.batch, at.head, q, min(kv, args.kv_len - 1)));
    bits |= static_cast<std::uint32_t>(keep & (kv < args.kv_len)) << i;
  }
  return bits;
}

} // namespace maskring::cuda::detail::sm80
