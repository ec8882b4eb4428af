// SPDX-License-Identifier: Apache-2.0
// The shapes of the Hopper forward kernel: one struct, the kernel's only shape parameter.
#pragma once

#include <maskring/core/problem.hpp>
#include <maskring/cuda/detail/ptx/wgmma.cuh>

namespace maskring::cuda::detail::sm90 {

/// A shape of the forward kernel. `tile.q` is 64 rows for each consumer warpgroup.
struct forward_policy {
  int qk_dim = 128;      ///< head dimension of queries and keys; smaller ones are filled with 0
  int v_dim = 128;       ///< of values
  tile_shape tile{};     ///< of the block map, and of the kernel
  int stages = 2;        ///< tiles of keys, and of values, in flight
  int query_stages = 1;  ///< query tiles: with 2 the next item's queries arrive early
  bool ping_pong = true; ///< consumers take turns: one multiplies while another exponentiates
  bool overlap = true;   ///< they also exponentiate beside their own products with V, which
                         ///< takes registers for weights of two tiles
  int early_weights = 0; ///< without overlap: how many of a thread's scores they do so with

  constexpr int consumers() const { return tile.q / 64; }
  constexpr int threads() const { return 128 * (consumers() + 1); }

  // setmaxnreg moves the producer's registers to the consumers, who must not ask for more than the
  // kernel starts with: 65536 over all threads, in eights for each.
  constexpr int producer_registers() const {
    return consumers() == 1 ? 56 : consumers() == 2 ? (spares_registers() ? 56 : 40) : 32;
  }
  constexpr int consumer_registers() const {
    return consumers() == 1 ? 256 : consumers() == 2 ? (spares_registers() ? 224 : 232) : 160;
  }
  /// Whether judges look at elements; with 32 registers they spill, with 40 it is untried.
  constexpr bool judges_elements() const { return producer_registers() >= 56; }
  /// Whether two groups leave registers over, which judges can use.
  constexpr bool spares_registers() const { return v_dim <= 128 && tile.kv <= 128; }

  constexpr bool valid() const {
    return qk_dim % 32 == 0 && v_dim % 32 == 0 && qk_dim <= 256 && v_dim <= 256 &&
           tile.q % 64 == 0 && consumers() >= 1 && consumers() <= 3 && tile.kv % 16 == 0 &&
           tile.kv <= 256 && stages >= 2 && query_stages >= 1 && (consumers() > 1 || !ping_pong);
  }
};

/// How a tile of `rows` rows of a 16-bit tensor lies in shared memory: in chunks of columns as wide
/// as the swizzle, each chunk `rows` rows long.
struct operand_layout {
  int rows, dim;

  constexpr int chunk_columns() const { return dim % 64 == 0 ? 64 : 32; }
  constexpr int chunks() const { return dim / chunk_columns(); }
  constexpr int row_bytes() const { return 2 * chunk_columns(); }
  constexpr int chunk_bytes() const { return rows * row_bytes(); }
  constexpr int bytes() const { return chunks() * chunk_bytes(); }
  constexpr int atom_bytes() const { return 8 * row_bytes(); }
  constexpr ptx::swizzle swizzle() const {
    return chunk_columns() == 64 ? ptx::swizzle::bytes_128 : ptx::swizzle::bytes_64;
  }
  /// Where 8 columns, counted in such units, of a row begin.
  constexpr int offset(int row, int unit) const {
    const int per_chunk = chunk_columns() / 8;
    const int key = chunk_columns() == 64 ? row & 7 : row >> 1 & 3;
    return unit / per_chunk * chunk_bytes() + row * row_bytes() + (unit % per_chunk ^ key) * 16;
  }
  /// The address 16 · `steps` columns on in the same row, from one within the row's first 16.
  constexpr std::uint32_t columns_on(std::uint32_t address, int steps) const {
    const int per_chunk = chunk_columns() / 16; // the swizzle flips bits of the unit alone
    return (address ^ static_cast<std::uint32_t>(steps % per_chunk * 32)) +
           static_cast<std::uint32_t>(steps / per_chunk * chunk_bytes());
  }
  /// Where the 16 columns of inner step `step` begin, with the rows not transposed.
  constexpr int column_step(int step) const {
    const int per_chunk = chunk_columns() / 16;
    return step / per_chunk * chunk_bytes() + step % per_chunk * 32;
  }
  /// Where the 16 rows of inner step `step` begin, for an operand used transposed.
  constexpr int row_step(int step) const { return step * 16 * row_bytes(); }
};

constexpr operand_layout query_layout(forward_policy p) { return {p.tile.q, p.qk_dim}; }
constexpr operand_layout key_layout(forward_policy p) { return {p.tile.kv, p.qk_dim}; }
constexpr operand_layout value_layout(forward_policy p) { return {p.tile.kv, p.v_dim}; }
/// Results on their way out, in the place of the queries.
constexpr operand_layout output_layout(forward_policy p) { return {p.tile.q, p.v_dim}; }

} // namespace maskring::cuda::detail::sm90
