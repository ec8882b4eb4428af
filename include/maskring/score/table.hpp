// SPDX-License-Identifier: Apache-2.0
// Arrays of numbers that score modifiers read.
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/mask/table.hpp>

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

namespace maskring::score {

/// A row of numbers in memory that somebody else owns, host or device.
struct number_view {
  const float* values = nullptr;
  int size = 0;
  std::uint64_t serial = 0;

  friend constexpr bool operator==(const number_view& a, const number_view& b) {
    return a.serial == b.serial && a.values == b.values;
  }
};

/// Owns a number_view's memory on the host.
class number_table {
public:
  /// @param cover how many entries the modifier will ask for; `what` names the table in errors.
  /// @throws std::invalid_argument if there are fewer, or one is not a finite number.
  number_table(const char* what, std::span<const float> values, index_t cover)
      : memory_(values.begin(), values.end()), serial_{mask::next_serial()} {
    maskring::detail::require(static_cast<index_t>(values.size()) >= cover, what, ": ",
                              values.size(), " values, expected ", cover, " or more");
    for (std::size_t i = 0; i < values.size(); ++i) {
      maskring::detail::require(std::isfinite(values[i]), what, ": entry ", i, " is ", values[i],
                                ", expected a finite number");
    }
  }

  std::span<const float> memory() const { return memory_; }
  number_view view_at(const float* memory) const {
    return {memory, static_cast<int>(memory_.size()), serial_};
  }
  /// Valid while the table lives.
  number_view view() const { return view_at(memory_.data()); }

private:
  std::vector<float> memory_;
  std::uint64_t serial_;
};

} // namespace maskring::score
