// SPDX-License-Identifier: Apache-2.0
// Arrays that masks read: at one index, or over a whole range of them without visiting it.
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/core/range.hpp>

#include <algorithm>
#include <atomic>
#include <concepts>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

namespace maskring::mask {

/// A table's number: no two tables of a program have the same, so that caches tell them apart.
inline std::uint64_t next_serial() {
  static std::atomic<std::uint64_t> next{1};
  return next++;
}

/// Owns the memory that a mask or score modifier reads, in one piece, and makes the views of it.
///
/// To use one on a device, copy `memory()` there and ask for `view_at(the copy)`.
template <class T>
concept lookup_table = requires(const T table) {
  { table.view() } -> std::same_as<decltype(table.view_at(table.memory().data()))>;
  requires std::is_trivially_copyable_v<decltype(table.view())>;
};

/// An array of ints in memory that somebody else owns, host or device. At an index it gives the
/// entry, over a range of indices the range of the entries there: from the two ends if they ascend,
/// else from a tree of minima and maxima in O(log size); up to 256 indices with a stride one by
/// one. Outside the table every entry is 0.
struct int_table_view {
  const int* values = nullptr;
  const int* lows =
      nullptr; ///< [size]: node i is the minimum of nodes 2i, 2i+1; leaf i + size is values[i]
  const int* highs = nullptr; ///< the same with maxima; both null if the values ascend
  int size = 0;
  int least = 0; ///< of all values
  int most = 0;
  std::uint64_t serial = 0;

  constexpr bool ascending() const { return lows == nullptr; }

  constexpr int operator()(int i) const {
    if (size == 0) return 0;
    // Read without asking first, at a place that exists: a kernel can then read once for a whole
    // row.
    const int value = values[clamp(i, 0, size - 1)];
    return i >= 0 && i < size ? value : 0;
  }

  constexpr range operator()(range i) const {
    const index_t first = i.lo < 0 ? 0 : i.lo, last = i.hi < size ? i.hi : size - 1;
    if (first > last) return range{0}.with_depends(i.depends);
    range inside = ascending() ? range{values[first], values[last]} : extremes(first, last);
    // A stride skips entries, which can matter; few members are read one by one.
    constexpr index_t few = 256;
    if (i.step > 1 && !inside.is_point() && last - first < few * i.step) {
      inside = strided_extremes(i, first, last);
    }
    return (i.lo < first || i.hi > last ? hull(inside, range{0}) : inside).with_depends(i.depends);
  }

  friend constexpr bool operator==(const int_table_view& a, const int_table_view& b) {
    return a.serial == b.serial && a.values == b.values;
  }

private:
  constexpr range strided_extremes(range i, index_t first, index_t last) const {
    const index_t start = i.lo + (first - i.lo + i.step - 1) / i.step * i.step;
    if (start > last) return range{0}; // the members are outside, where entries are 0
    int low = values[start], high = low;
    for (index_t at = start; at <= last; at += i.step) {
      low = values[at] < low ? values[at] : low;
      high = values[at] > high ? values[at] : high;
    }
    return {low, high};
  }

  // The usual walk up a binary tree from both ends; entries of the bottom row are the values.
  constexpr range extremes(index_t first, index_t last) const {
    int low = values[first], high = low;
    const auto take = [&](index_t node) {
      const int l = node >= size ? values[node - size] : lows[node];
      const int h = node >= size ? values[node - size] : highs[node];
      low = l < low ? l : low;
      high = h > high ? h : high;
    };
    for (index_t a = first + size, b = last + size + 1; a < b; a /= 2, b /= 2) {
      if (a % 2 == 1) take(a++);
      if (b % 2 == 1) take(--b);
    }
    return {low, high};
  }
};

/// Owns an int_table_view's memory on the host: something for each token, batch entry, head, image…
class int_table {
public:
  /// @param cover how many entries the mask will ask for: the sequence length of a table of tokens,
  /// the batch size of a table of batch entries.
  /// @throws std::invalid_argument if there are fewer values than that.
  int_table(std::span<const int> values, index_t cover)
      : int_table{values, cover, std::is_sorted(values.begin(), values.end())} {}

  /// A table that must ascend, such as the first tokens of packed pieces.
  /// @throws std::invalid_argument if it does not, or is too short.
  static int_table sorted(std::span<const int> values, index_t cover) {
    for (std::size_t i = 1; i < values.size(); ++i) {
      maskring::detail::require(values[i] >= values[i - 1], "int_table: entry ", i, " is ",
                                values[i], ", expected ", values[i - 1],
                                " or more (a sorted table)");
    }
    return {values, cover, true};
  }

  /// @throws std::invalid_argument unless least ≤ every value ≤ most; `what` names the table.
  const int_table& require_within(const char* what, int least, int most) const {
    for (int i = 0; i < size_; ++i) {
      maskring::detail::require(memory_[i] >= least && memory_[i] <= most, what, ": entry ", i,
                                " is ", memory_[i], ", expected ", least, " to ", most);
    }
    return *this;
  }

  std::span<const int> memory() const { return memory_; }
  int_table_view view_at(const int* memory) const {
    return {memory,
            ascending_ ? nullptr : memory + size_,
            ascending_ ? nullptr : memory + 2 * size_,
            size_,
            least_,
            most_,
            serial_};
  }
  /// Valid while the table lives.
  int_table_view view() const { return view_at(memory_.data()); }

private:
  int_table(std::span<const int> values, index_t cover, bool ascending)
      : memory_(values.begin(), values.end()),
        size_{static_cast<int>(values.size())},
        ascending_{ascending},
        serial_{next_serial()} {
    maskring::detail::require(values.size() < (std::size_t{1} << 31), "int_table: ", values.size(),
                              " values, expected less than 2^31");
    maskring::detail::require(static_cast<index_t>(values.size()) >= cover,
                              "int_table: ", values.size(), " values, expected ", cover,
                              " or more");
    if (size_ > 0) {
      least_ = *std::min_element(values.begin(), values.end());
      most_ = *std::max_element(values.begin(), values.end());
    }
    if (!ascending_) build_tree();
  }

  void build_tree() {
    const auto n = static_cast<std::size_t>(size_);
    memory_.resize(3 * n);
    const auto node = [&](std::size_t part, std::size_t i) {
      return i >= n ? memory_[i - n] : memory_[part * n + i];
    };
    for (std::size_t i = n - 1; i > 0; --i) {
      memory_[n + i] = std::min(node(1, 2 * i), node(1, 2 * i + 1));
      memory_[2 * n + i] = std::max(node(2, 2 * i), node(2, 2 * i + 1));
    }
  }

  std::vector<int> memory_; // values, then the nodes of minima, then those of maxima
  int size_ = 0, least_ = 0, most_ = 0;
  bool ascending_ = true;
  std::uint64_t serial_ = 0;
};

} // namespace maskring::mask
