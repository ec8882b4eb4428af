// SPDX-License-Identifier: Apache-2.0
// What all ranks agree on: the sizes of the whole problem and how its sequences are split.
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/shard/layout.hpp>

namespace maskring::cp {

/// The sizes that all ranks share. The lengths of the sequences are the layouts'.
struct shape {
  index_t batch = 0, q_heads = 0, kv_heads = 0, qk_dim = 0, v_dim = 0;
  friend constexpr bool operator==(const shape&, const shape&) = default;
};

/// How the queries and the keys are split. One layout serves both where they are as long;
/// otherwise, or where they are split in different ways, name two: `shards{zigzag{m, n},
/// contiguous{k, n}}`.
template <shard::layout QLayout, shard::layout KvLayout = QLayout>
struct shards {
  QLayout q;
  KvLayout kv;
  constexpr shards(QLayout queries, KvLayout keys) : q{queries}, kv{keys} {}
  constexpr shards(QLayout both) requires std::same_as<QLayout, KvLayout> : q{both}, kv{both} {}
};
template <shard::layout Layout>
shards(Layout) -> shards<Layout, Layout>;

/// Positions [lo, hi) of a shard.
struct interval {
  index_t lo = 0;
  index_t hi = 0;
  constexpr bool empty() const { return lo >= hi; }
  constexpr index_t size() const { return empty() ? 0 : hi - lo; }
  constexpr bool contains(const interval& other) const {
    return other.empty() || (lo <= other.lo && other.hi <= hi);
  }
  friend constexpr bool operator==(const interval&, const interval&) = default;
  friend constexpr interval hull(const interval& a, const interval& b) {
    return a.empty() ? b : b.empty() ? a : interval{min(a.lo, b.lo), max(a.hi, b.hi)};
  }
};

} // namespace maskring::cp
