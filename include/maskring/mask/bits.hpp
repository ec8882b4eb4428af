// SPDX-License-Identifier: Apache-2.0
// A matrix of flags that masks read, with counts that answer for a stretch of a row in constant
// time.
#pragma once

#include <maskring/mask/table.hpp>

namespace maskring::mask {

/// A matrix of bits in memory that somebody else owns, host or device; outside it all bits are 0.
/// The rank index of G. Jacobson (1989): the ones before every word are counted in advance.
struct bit_matrix_view {
  const std::uint32_t* words = nullptr;  ///< [rows, row_words]
  const std::uint32_t* counts = nullptr; ///< [rows, row_words]: ones of the row before the word
  index_t rows = 0;
  int columns = 0;
  int row_words = 0;
  std::uint64_t serial = 0;

  constexpr bool operator()(index_t row, int column) const {
    if (row < 0 || row >= rows || column < 0 || column >= columns) return false;
    return (words[row * row_words + column / 32] >> (column % 32) & 1u) != 0;
  }

  /// What the row holds in columns [first, last]: no ones, some, or nothing else.
  constexpr verdict operator()(index_t row, index_t first, index_t last) const {
    const index_t from = first < 0 ? 0 : first, to = last < columns ? last : columns - 1;
    if (row < 0 || row >= rows || from > to) return verdict::none;
    const index_t ones = before(row, to) + (*this)(row, static_cast<int>(to)) - before(row, from);
    return ones == 0 ? verdict::none : ones == last - first + 1 ? verdict::all : verdict::some;
  }

  friend constexpr bool operator==(const bit_matrix_view& a, const bit_matrix_view& b) {
    return a.serial == b.serial && a.words == b.words;
  }

private:
  constexpr index_t before(index_t row, index_t column) const {
    const index_t at = row * row_words + column / 32;
    return index_t{counts[at]} + ones(words[at] & ((1u << (column % 32)) - 1));
  }
  static constexpr index_t ones(std::uint32_t x) { // added up in pairs, fours, bytes
    x -= x >> 1 & 0x55555555u;
    x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
    return (((x + (x >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24;
  }
};

/// Owns a bit_matrix_view's memory on the host.
class bit_matrix {
public:
  /// Calls `fill(mark)`, which calls `mark(row, column)` for the ones; all other bits are 0.
  /// @throws std::invalid_argument for a negative size or a mark outside the matrix.
  template <class Fill>
  bit_matrix(index_t rows, index_t columns, Fill&& fill) : serial_{next_serial()} {
    maskring::detail::require(rows >= 0 && columns >= 0 && columns < (index_t{1} << 31),
                              "bit_matrix: ", rows, " x ", columns,
                              ", expected sizes of 0 or more, below 2^31 columns");
    shape_.rows = rows;
    shape_.columns = static_cast<int>(columns);
    shape_.row_words = static_cast<int>((columns + 31) / 32);
    memory_.resize(2 * half());
    fill([this](index_t row, index_t column) {
      maskring::detail::require(row >= 0 && row < shape_.rows, "bit_matrix: row is ", row,
                                ", expected 0 to ", shape_.rows - 1);
      maskring::detail::require(column >= 0 && column < shape_.columns, "bit_matrix: column is ",
                                column, ", expected 0 to ", shape_.columns - 1);
      const index_t word = row * shape_.row_words + column / 32;
      memory_[static_cast<std::size_t>(word)] |= 1u << (column % 32);
    });
    count();
  }

  std::span<const std::uint32_t> memory() const { return memory_; }
  bit_matrix_view view_at(const std::uint32_t* memory) const {
    bit_matrix_view out = shape_;
    out.words = memory;
    out.counts = memory + half();
    out.serial = serial_;
    return out;
  }
  /// Valid while the matrix lives.
  bit_matrix_view view() const { return view_at(memory_.data()); }

private:
  void count() {
    const auto width = static_cast<std::size_t>(shape_.row_words);
    for (std::size_t row = 0; row < static_cast<std::size_t>(shape_.rows); ++row) {
      std::uint32_t sum = 0;
      for (std::size_t i = row * width; i < (row + 1) * width; ++i) {
        memory_[half() + i] = sum;
        for (std::uint32_t rest = memory_[i]; rest != 0; rest &= rest - 1) ++sum;
      }
    }
  }
  std::size_t half() const { return static_cast<std::size_t>(shape_.rows) * shape_.row_words; }

  bit_matrix_view shape_;
  std::vector<std::uint32_t> memory_; // words, then counts
  std::uint64_t serial_ = 0;
};

} // namespace maskring::mask
