// SPDX-License-Identifier: Apache-2.0
// Masks that a model computes: which blocks of keys each block of queries reads.
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/mask/bits.hpp>
#include <maskring/mask/concepts.hpp>
#include <maskring/mask/detail/pieces.hpp>

namespace maskring::mask {

/// The sizes of a table of blocks: one for each batch entry and head (1: shared), of `rows` blocks
/// of queries and `columns` blocks of keys.
struct block_table_shape {
  index_t batch = 1, heads = 1, rows = 0, columns = 0;
  friend constexpr bool operator==(const block_table_shape&, const block_table_shape&) = default;
};

/// The bits of `flags`, [batch, heads, rows, columns] row-major, nonzero for blocks to keep.
/// @throws std::invalid_argument if there are not that many flags.
inline bit_matrix block_bits(const block_table_shape& shape, std::span<const std::uint8_t> flags) {
  const index_t rows = shape.batch * shape.heads * shape.rows;
  maskring::detail::require(static_cast<index_t>(flags.size()) == rows * shape.columns,
                            "block_bits: ", flags.size(), " flags, expected ",
                            rows * shape.columns);
  return {rows, shape.columns, [&](auto mark) {
            for (index_t i = 0; i < rows * shape.columns; ++i) {
              if (flags[static_cast<std::size_t>(i)]) mark(i / shape.columns, i % shape.columns);
            }
          }};
}

/// The bits of `chosen`, [batch, heads, rows, k] row-major: the key blocks that each block of
/// queries reads; −1 fills lists that are shorter than k.
/// @throws std::invalid_argument if their number does not fit, or one is no block of keys.
inline bit_matrix topk_bits(const block_table_shape& shape, std::span<const int> chosen,
                            index_t k) {
  const index_t rows = shape.batch * shape.heads * shape.rows;
  maskring::detail::require(k >= 0 && static_cast<index_t>(chosen.size()) == rows * k,
                            "topk_bits: ", chosen.size(), " blocks, expected ", rows, " x ", k);
  return {rows, shape.columns, [&](auto mark) {
            for (std::size_t i = 0; i < chosen.size(); ++i) {
              const int block = chosen[i];
              maskring::detail::require(block >= -1 && block < shape.columns, "topk_bits: entry ",
                                        i, " is ", block, ", expected -1 to ", shape.columns - 1);
              if (block >= 0) mark(static_cast<index_t>(i) / k, block);
            }
          }};
}

/// table[b, h, q // block, kv // block]: attention to chosen blocks (P. Zhang et al., VSA, 2025;
/// also the selection branch of J. Yuan et al., Native Sparse Attention, 2025). With topk_bits:
/// kv // block is among topk[b, h, q // block].
///
/// Ranges take a constant time for each block of queries; exact for one batch entry and head.
class block_table {
public:
  /// @throws std::invalid_argument if block < 1 or the bits do not have the shape.
  constexpr block_table(const bit_matrix_view& bits, const block_table_shape& shape, int block)
      : bits_{bits}, shape_{shape}, block_{block} {
    maskring::detail::require(block >= 1, "block_table: block is ", block, ", expected 1 or more");
    maskring::detail::require(shape.batch >= 1 && shape.heads >= 1, "block_table: shape is ",
                              shape.batch, " batch entries and ", shape.heads,
                              " heads, expected 1 or more");
    maskring::detail::require(
        bits.rows == shape.batch * shape.heads * shape.rows && bits.columns == shape.columns,
        "block_table: bits are ", bits.rows, " x ", bits.columns, ", expected ",
        shape.batch * shape.heads * shape.rows, " x ", shape.columns);
  }

  /// @throws std::invalid_argument unless the table covers that many queries and keys.
  constexpr block_table require_covers(index_t q_len, index_t kv_len) const {
    maskring::detail::require(shape_.rows * block_ >= q_len && shape_.columns * block_ >= kv_len,
                              "block_table: the table covers ", shape_.rows * block_,
                              " queries and ", shape_.columns * block_, " keys, expected ", q_len,
                              " and ", kv_len);
    return *this;
  }

  constexpr bool operator()(int b, int h, int q, int kv) const {
    const int row = floor_div(q, block_);
    return row >= 0 && row < shape_.rows && bits_(first_row(b, h) + row, floor_div(kv, block_));
  }

  constexpr kleene operator()(range b, range h, range q, range kv) const {
    std::uint8_t depends = detail::joint_depends(q, kv);
    if (shape_.batch > 1) depends = static_cast<std::uint8_t>(depends | b.depends);
    if (shape_.heads > 1) depends = static_cast<std::uint8_t>(depends | h.depends);
    const bool one_layer =
        (b.is_point() || shape_.batch == 1) && (h.is_point() || shape_.heads == 1);
    const range rows = floor_div(q, block_), columns = floor_div(kv, block_);
    constexpr index_t most = 4096;
    if (!one_layer || rows.hi - rows.lo >= most) return {verdict::some, depends};
    const index_t first = first_row(static_cast<int>(b.lo), static_cast<int>(h.lo));
    detail::joined seen;
    for (index_t row = rows.lo; row <= rows.hi && !seen.mixed(); ++row) {
      const bool outside = row < 0 || row >= shape_.rows;
      seen.add(outside ? kleene{false} : kleene{bits_(first + row, columns.lo, columns.hi), 0});
    }
    return seen.result(depends);
  }
  friend constexpr bool operator==(const block_table&, const block_table&) = default;

private:
  constexpr index_t first_row(int b, int h) const {
    return ((shape_.batch == 1 ? 0 : b) * shape_.heads + (shape_.heads == 1 ? 0 : h)) * shape_.rows;
  }

  bit_matrix_view bits_;
  block_table_shape shape_;
  int block_;
};

} // namespace maskring::mask
