// SPDX-License-Identifier: Apache-2.0
// The first and the last key that a block of queries sees, by halving the keys.
#pragma once

#include <maskring/cp/shape.hpp>
#include <maskring/shard/rewrite.hpp>

namespace maskring::cp::detail {

/// Verdicts that one end of an interval may cost. Ends of exact masks are found in about twice the
/// logarithm of the keys; where a mask answers `some` without cause the search stops here and keeps
/// the keys that it has not cleared.
inline constexpr int most_verdicts = 2048;

/// The outermost of the keys [0, kv_len) that are not proved unseen by the queries [0, q_len): the
/// lowest one, or the highest if `from_end`. −1 if none of them is seen.
template <mask_mod Mask>
index_t outermost_needed(const Mask& mask, range batch, range heads, index_t q_len, index_t kv_len,
                         bool from_end) {
  range pending[64];
  int depth = 0, verdicts = 0;
  pending[depth++] = {0, kv_len - 1};
  while (depth > 0) {
    const range keys = pending[--depth];
    const verdict v = verdict_of(mask, {{0, q_len - 1}, keys, batch, heads});
    if (v == verdict::none) continue;
    if (v == verdict::all || keys.is_point() || ++verdicts >= most_verdicts) {
      return from_end ? keys.hi : keys.lo;
    }
    const index_t middle = keys.lo + (keys.hi - keys.lo) / 2;
    const range low{keys.lo, middle}, high{middle + 1, keys.hi};
    pending[depth++] = from_end ? low : high;
    pending[depth++] = from_end ? high : low;
  }
  return -1;
}

/// The hull of the keys [0, kv_len) that the queries [0, q_len) see; both lengths are positive.
template <mask_mod Mask>
interval needed_keys(const Mask& mask, range batch, range heads, index_t q_len, index_t kv_len) {
  const index_t first = outermost_needed(mask, batch, heads, q_len, kv_len, false);
  if (first < 0) return {};
  return {first, outermost_needed(mask, batch, heads, q_len, kv_len, true) + 1};
}

}  // namespace maskring::cp::detail
