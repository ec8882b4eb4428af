// SPDX-License-Identifier: Apache-2.0
// What a warp of the portable forward kernel knows of the blocks of its partial tiles.
#pragma once

#include <maskring/cuda/detail/kept_scores.cuh>

namespace maskring::cuda::detail::sm80 {

/// The verdicts of a warp's blocks of 16 × 16 in key tiles of `Columns` blocks, for `Strips` strips
/// of 16 rows that lie `Stride` rows apart. A lane asks about one block, so that one question
/// serves as many tiles as fit a warp.
template <int Strips, int Columns, int Stride>
class block_verdicts {
  static constexpr int blocks = Strips * Columns;
  static constexpr int tiles = 32 / blocks;
  static_assert(32 % blocks == 0);

public:
  /// Turns to a tile; the warp's first strip begins at row `q`.
  template <class Arguments>
  __device__ void look_at(const Arguments& args, int batch, int head, int q, int tile) {
    if (tile / tiles != asked_) {
      asked_ = tile / tiles;
      const int lane = static_cast<int>(threadIdx.x) % 32;
      const int strip = lane / Columns % Strips;
      const int column = lane / blocks * Columns + lane % Columns;
      const verdict v = block_verdict(args, batch, head, q + strip * Stride, 16,
                                      16 * (asked_ * tiles * Columns + column), 16);
      some_ = __ballot_sync(~0u, v == verdict::some);
      all_ = __ballot_sync(~0u, v == verdict::all);
    }
    shift_ = tile % tiles * blocks;
  }

  /// Bit i: block i of the strip.
  __device__ std::uint32_t some(int strip) const { return row(some_, strip); }
  __device__ std::uint32_t all(int strip) const { return row(all_, strip); }

  /// Bit i: strip i sees something.
  __device__ std::uint32_t seen() const {
    std::uint32_t out = 0;
#pragma unroll
    for (int i = 0; i < Strips; ++i) out |= (some(i) | all(i)) != 0 ? 1u << i : 0;
    return out;
  }

private:
  __device__ std::uint32_t row(std::uint32_t of, int strip) const {
    return of >> (shift_ + strip * Columns) & ((1u << Columns) - 1);
  }

  int asked_ = -1; ///< which group of `tiles` tiles the verdicts are of
  int shift_ = 0;
  std::uint32_t some_ = 0, all_ = 0;
};

} // namespace maskring::cuda::detail::sm80
