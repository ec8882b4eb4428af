// SPDX-License-Identifier: Apache-2.0
// The order in which blocks of the backward kernels take up tiles of keys.
#pragma once

namespace maskring::cuda::detail {

/// A tile of keys of one key head: what one block makes dk and dv of, alone.
///
/// Blocks that take turns at one head's queries follow each other at a distance. Several heads at a
/// time let enough of them begin for all multiprocessors.
struct backward_unit {
  int kv_tile, kv_head, batch;

  /// @param layers batch · kv_heads.
  static __device__ backward_unit of(int unit, int kv_tiles, int layers, int kv_heads) {
    constexpr int heads_at_a_time = 32;
    const int first = unit / (heads_at_a_time * kv_tiles) * heads_at_a_time;
    const int count = min(heads_at_a_time, layers - first);
    const int within = unit - first * kv_tiles;
    const int layer = first + within % count;
    return {within / count, layer % kv_heads, layer / kv_heads};
  }
};

} // namespace maskring::cuda::detail
