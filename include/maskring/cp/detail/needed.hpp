// SPDX-License-Identifier: Apache-2.0
// The first and the last key that a block of queries sees, by halving the keys; and the reverse.
#pragma once

#include <maskring/cp/shape.hpp>
#include <maskring/shard/rewrite.hpp>

namespace maskring::cp::detail {

/// Verdicts that one end of an interval may cost. Ends of exact masks are found in about twice the
/// logarithm of the length; where a mask answers `some` without cause the search stops here and
/// keeps what it has not cleared.
inline constexpr int most_verdicts = 2048;

/// The outermost of the positions [0, length) that are not proved unseen: the lowest one, or the
/// highest if `from_end`. −1 if none of them is seen. `ask(range)` gives the verdict of positions.
template <class Ask>
index_t outermost_seen(Ask ask, index_t length, bool from_end) {
  range pending[64];
  int depth = 0, verdicts = 0;
  pending[depth++] = {0, length - 1};
  while (depth > 0) {
    const range part = pending[--depth];
    const verdict v = ask(part);
    if (v == verdict::none) continue;
    if (v == verdict::all || part.is_point() || ++verdicts >= most_verdicts) {
      return from_end ? part.hi : part.lo;
    }
    const index_t middle = part.lo + (part.hi - part.lo) / 2;
    const range low{part.lo, middle}, high{middle + 1, part.hi};
    pending[depth++] = from_end ? low : high;
    pending[depth++] = from_end ? high : low;
  }
  return -1;
}

/// The hull of the seen positions; the length is positive.
template <class Ask>
interval hull_of_seen(Ask ask, index_t length) {
  const index_t first = outermost_seen(ask, length, false);
  if (first < 0) return {};
  return {first, outermost_seen(ask, length, true) + 1};
}

/// The hull of the keys [0, kv_len) that the queries [0, q_len) see; both lengths are positive.
template <mask_mod Mask>
interval needed_keys(const Mask& mask, range batch, range heads, index_t q_len, index_t kv_len) {
  return hull_of_seen(
      [&](range keys) {
        return verdict_of(mask, {{0, q_len - 1}, keys, batch, heads});
      },
      kv_len);
}

/// The hull of the queries [0, q_len) that see some of the keys, which are not empty.
template <mask_mod Mask>
interval seeing_queries(const Mask& mask, range batch, range heads, index_t q_len,
                        const interval& keys) {
  return hull_of_seen(
      [&](range queries) {
        return verdict_of(mask, {queries, {keys.lo, keys.hi - 1}, batch, heads});
      },
      q_len);
}

} // namespace maskring::cp::detail
