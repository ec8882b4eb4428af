// SPDX-License-Identifier: Apache-2.0
// What attention calls over the same queries and other keys hand on to one another.
#pragma once

#include <maskring/core/view.hpp>

#include <cstdint>

namespace maskring::cuda::detail {

/// The softmax states of query rows whose keys come in several calls, as the kernel's threads hold
/// them: nothing is normalised, merged or reordered between the calls. Of one kernel only; the
/// Hopper forward kernel's.
struct row_states {
  view<float, 4> sums;           ///< [batch, q_heads, q_len, width(v_dim)], rows 16-byte aligned
  view<float, 3> maximum, total; ///< [batch, q_heads, q_len]
  const std::uint8_t* tiles = nullptr; ///< bits of tile_part, by query tile

  static constexpr index_t width(index_t v_dim) { return (v_dim + 15) / 16 * 16; }

  /// Where columns `column` and column + 1, an even one, lie in a row: a lane's columns of two
  /// groups of eight are neighbours.
  static constexpr int place(int column) {
    return column / 16 * 16 + column % 8 * 2 + column % 16 / 8 * 2;
  }
};

} // namespace maskring::cuda::detail
