// SPDX-License-Identifier: Apache-2.0
// Ranges of indices as boxes of coordinates, on which masks of several axes are exact.
#pragma once

#include <maskring/core/range.hpp>
#include <maskring/mask/detail/pieces.hpp>

namespace maskring::mask::detail {

/// Coordinates that a range of indices takes: all combinations of these, one range an axis.
template <int Axes>
struct box {
  range at[Axes];
};

/// A list of boxes of fixed capacity.
template <int Axes, int Capacity>
struct boxes {
  box<Axes> list[Capacity];
  int count = 0;

  constexpr void push(const box<Axes>& b) { list[count++] = b; }
};

/// Splits a range of numbers i = ((… + c₂)·e₁ + c₁)·e₀ + c₀ with digits c₀ < e₀, c₁ < e₁, … (the
/// last has no limit) into boxes of digits and calls emit for each, at most 2·Axes − 1 times:
/// beginnings and ends that do not fill a digit, and the full middle. A stride that divides e₀ is
/// kept; with another one the boxes also hold the indices in between.
template <int Axes, int Axis = Axes - 1, class Emit>
constexpr void for_each_box(range i, const int (&extent)[Axes], box<Axes> outer, Emit& emit) {
  if constexpr (Axis == 0) {
    outer.at[0] = i;
    emit(outer);
  } else {
    index_t inner = 1; // indices to one step of this axis
    for (int a = 0; a < Axis; ++a) inner *= extent[a];
    if (i.step > 1 && extent[0] % i.step != 0) i = {i.lo, i.hi, 1, i.depends};
    const index_t step = i.step > 0 ? i.step : 1;
    const index_t residue = floor_mod(i.lo, step);
    const index_t first = floor_div(i.lo, inner), last = floor_div(i.hi, inner);
    const auto part = [&](index_t from, index_t to, index_t lo, index_t hi) {
      outer.at[Axis] = {from, to, 1, i.depends};
      for_each_box<Axes, Axis - 1>(range{lo, hi, step, i.depends}, extent, outer, emit);
    };
    const index_t full_lo = residue, full_hi = inner - step + residue;
    const index_t lo = i.lo - first * inner, hi = i.hi - last * inner;
    if (first == last) return part(first, first, lo, hi);
    const bool cut_front = lo != full_lo, cut_back = hi != full_hi;
    if (cut_front) part(first, first, lo, full_hi);
    if (first + cut_front <= last - cut_back) {
      part(first + cut_front, last - cut_back, full_lo, full_hi);
    }
    if (cut_back) part(last, last, full_lo, hi);
  }
}

template <int Axes>
constexpr boxes<Axes, 2 * Axes - 1> split_digits(range i, const int (&extent)[Axes]) {
  boxes<Axes, 2 * Axes - 1> out;
  auto emit = [&](const box<Axes>& b) { out.push(b); };
  for_each_box<Axes>(i, extent, {}, emit);
  return out;
}

/// The verdict over all pairs of boxes of queries and keys, where `keep(q_box, kv_box)` answers for
/// one pair.
template <class QBoxes, class KvBoxes, class Keep>
constexpr kleene join_boxes(const QBoxes& queries, const KvBoxes& keys, std::uint8_t depends,
                            Keep&& keep) {
  joined seen;
  for (int i = 0; i < queries.count && !seen.mixed(); ++i) {
    for (int j = 0; j < keys.count && !seen.mixed(); ++j) {
      seen.add(keep(queries.list[i], keys.list[j]));
    }
  }
  return seen.result(depends);
}

} // namespace maskring::mask::detail
