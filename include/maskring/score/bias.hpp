// SPDX-License-Identifier: Apache-2.0
// Biases that are looked up, and learned: tables by head and by how query and key relate.
#pragma once

#include <maskring/core/range.hpp>
#include <maskring/score/concepts.hpp>
#include <maskring/score/exact_sum.hpp>
#include <maskring/score/table.hpp>

#include <algorithm>
#include <utility>

namespace maskring::score {

/// Buckets of the distance: bucket_of[clamp(kv − q, −reach, reach) + reach], in memory that
/// somebody else owns, host or device.
struct distance_buckets_view {
  const int* bucket_of = nullptr; ///< [2·reach + 1]
  int reach = 0;
  int count = 0;
  std::uint64_t serial = 0;

  constexpr int operator()(int q, int kv) const {
    return bucket_of[clamp(kv - q, -reach, reach) + reach];
  }
  /// The buckets of pairs by how many positions further on than (q, kv) they are.
  constexpr auto from(int q, int kv) const {
    return [buckets = *this, distance = kv - q](int dq, int dkv) {
      return buckets(0, distance + (dkv - dq));
    };
  }
  friend constexpr bool operator==(const distance_buckets_view& a, const distance_buckets_view& b) {
    return a.serial == b.serial && a.bucket_of == b.bucket_of;
  }
};

/// Owns the buckets of all distances on the host.
class distance_buckets {
public:
  /// One bucket for each distance from −reach to reach; farther ones share the last (P. Shaw et
  /// al., 2018). @throws std::invalid_argument if reach < 0.
  static distance_buckets clipped(int reach) {
    maskring::detail::require(reach >= 0 && reach < (1 << 29), "distance_buckets: reach is ", reach,
                              ", expected 0 to 2^29 - 1");
    return {reach, 2 * reach + 1, [reach](int distance) { return distance + reach; }};
  }

  /// The buckets of T5 (C. Raffel et al., 2020): one a distance at first, then logarithmically
  /// wider up to `farthest`; half of them for keys behind the query if bidirectional, else these
  /// share 0.
  /// @throws std::invalid_argument for fewer than 2 buckets a side, or a `farthest` within the
  /// first half of them.
  static distance_buckets t5(int count, int farthest, bool bidirectional) {
    const int side = bidirectional ? count / 2 : count;
    const int exact = side / 2;
    maskring::detail::require(side >= 2, "distance_buckets: count is ", count, ", expected ",
                              bidirectional ? 4 : 2, " or more");
    maskring::detail::require(farthest > exact && farthest < (1 << 29),
                              "distance_buckets: farthest is ", farthest, ", expected more than ",
                              exact, " and less than 2^29");
    return {farthest, count, [=](int distance) { // kv − q
              const int ahead = bidirectional && distance > 0 ? side : 0;
              const int n = bidirectional ? abs(distance) : max(-distance, 0);
              if (n < exact) return ahead + n;
              const double share = std::log(static_cast<double>(n) / exact) /
                                   std::log(static_cast<double>(farthest) / exact);
              // The tiny addition keeps exact powers from falling into the bucket below.
              return ahead + min(exact + static_cast<int>(share * (side - exact) + 1e-9), side - 1);
            }};
  }

  std::span<const int> memory() const { return memory_; }
  distance_buckets_view view_at(const int* memory) const {
    return {memory, reach_, count_, serial_};
  }
  /// Valid while the table lives.
  distance_buckets_view view() const { return view_at(memory_.data()); }

private:
  template <class BucketOf>
  distance_buckets(int reach, int count, BucketOf bucket_of)
      : reach_{reach}, count_{count}, serial_{mask::next_serial()} {
    for (int distance = -reach; distance <= reach; ++distance)
      memory_.push_back(bucket_of(distance));
  }
  std::vector<int> memory_;
  int reach_, count_;
  std::uint64_t serial_;
};

/// A bucket for every pair: bucket_of[q][kv], such as the hops between two nodes of a graph
/// (C. Ying et al., Graphormer, 2021). The memory is somebody else's, host or device.
struct pair_buckets_view {
  const int* bucket_of = nullptr; ///< [queries, keys]
  int keys = 0;
  int count = 0;
  std::uint64_t serial = 0;

  constexpr int operator()(int q, int kv) const { return bucket_of[index_t{q} * keys + kv]; }
  friend constexpr bool operator==(const pair_buckets_view& a, const pair_buckets_view& b) {
    return a.serial == b.serial && a.bucket_of == b.bucket_of;
  }
};

/// Owns the buckets of all pairs on the host.
class pair_buckets {
public:
  /// @throws std::invalid_argument unless there are queries × keys buckets from 0 to count − 1.
  pair_buckets(std::span<const int> bucket_of, index_t queries, index_t keys, int count)
      : memory_(bucket_of.begin(), bucket_of.end()),
        keys_{static_cast<int>(keys)},
        count_{count},
        serial_{mask::next_serial()} {
    maskring::detail::require(static_cast<index_t>(bucket_of.size()) == queries * keys,
                              "pair_buckets: ", bucket_of.size(), " buckets, expected ",
                              queries * keys);
    for (std::size_t i = 0; i < bucket_of.size(); ++i) {
      maskring::detail::require(bucket_of[i] >= 0 && bucket_of[i] < count, "pair_buckets: entry ",
                                i, " is ", bucket_of[i], ", expected 0 to ", count - 1);
    }
  }
  std::span<const int> memory() const { return memory_; }
  pair_buckets_view view_at(const int* memory) const { return {memory, keys_, count_, serial_}; }
  /// Valid while the table lives.
  pair_buckets_view view() const { return view_at(memory_.data()); }

private:
  std::vector<int> memory_;
  int keys_, count_;
  std::uint64_t serial_;
};

/// A table of biases [heads, buckets] and, to learn it, the sums of its gradient; both in memory
/// that somebody else owns, host or device.
struct bias_view {
  const float* values = nullptr;
  exact_sum* gradient = nullptr; ///< [heads, buckets], or null: not learned
  int heads = 1;                 ///< 1: shared by all heads
  int buckets = 0;
  std::uint64_t serial = 0;

  /// The same table, with a place to add its gradient to.
  constexpr bias_view with_gradient(exact_sum* sums) const {
    bias_view out = *this;
    out.gradient = sums;
    return out;
  }
  friend constexpr bool operator==(const bias_view& a, const bias_view& b) {
    return a.serial == b.serial && a.values == b.values && a.gradient == b.gradient;
  }
};

/// Owns a table of biases on the host, and the sums of its gradient.
class bias_table {
public:
  /// @param values [heads, buckets] row-major.
  /// @throws std::invalid_argument if their number does not fit or one is not finite.
  bias_table(std::span<const float> values, int heads, int buckets)
      : memory_(values.begin(), values.end()),
        gradient_(values.size()),
        heads_{heads},
        buckets_{buckets},
        serial_{mask::next_serial()} {
    maskring::detail::require(heads >= 1 && buckets >= 1, "bias_table: ", heads, " x ", buckets,
                              ", expected 1 x 1 or more");
    maskring::detail::require(values.size() == static_cast<std::size_t>(heads) * buckets,
                              "bias_table: ", values.size(), " values, expected ", heads, " x ",
                              buckets);
    for (std::size_t i = 0; i < values.size(); ++i) {
      maskring::detail::require(std::isfinite(values[i]), "bias_table: entry ", i, " is ",
                                values[i], ", expected a finite number");
    }
  }

  std::span<float> values() { return memory_; } ///< to be changed by an optimiser
  /// What backward passes have added up, [heads, buckets].
  std::vector<double> gradient() const {
    std::vector<double> out;
    for (const exact_sum& sum : gradient_) out.push_back(sum.value());
    return out;
  }
  void clear_gradient() { std::fill(gradient_.begin(), gradient_.end(), exact_sum{}); }

  std::span<const float> memory() const { return memory_; }
  bias_view view_at(const float* memory) const {
    return {memory, nullptr, heads_, buckets_, serial_};
  }
  /// To read only. Valid while the table lives.
  bias_view view() const { return view_at(memory_.data()); }
  /// To learn too.
  bias_view learning() { return view().with_gradient(gradient_.data()); }

private:
  std::vector<float> memory_;
  std::vector<exact_sum> gradient_;
  int heads_, buckets_;
  std::uint64_t serial_;
};

/// What `bias` adds to the scores of one head: a row of its table.
template <class Buckets>
struct head_bias {
  bias_view table;
  index_t first; ///< entry of the table
  Buckets buckets;

  template <class Score>
  constexpr Score operator()(Score s, int, int, int q, int kv) const {
    return s + static_cast<detail::real<Score>>(table.values[first + buckets(q, kv)]);
  }
  template <class T>
  constexpr void add_gradient(T dscore, T, int, int, int q, int kv) const {
    if (table.gradient) table.gradient[first + buckets(q, kv)].add(static_cast<float>(dscore));
  }
  constexpr auto from(int q, int kv) const requires requires { buckets.from(q, kv); }
  {
    return [values = table.values + first, bucket = buckets.from(q, kv)](auto s, int dq, int dkv) {
      return s + static_cast<detail::real<decltype(s)>>(values[bucket(dq, dkv)]);
    };
  }
};

/// s + bias[h, bucket(q, kv)]; ∂/∂bias[h, i] is the sum of dscore over the pairs of bucket i.
template <class Buckets>
class bias {
public:
  /// @throws std::invalid_argument if the buckets do not have as many as the table.
  constexpr bias(const bias_view& table, const Buckets& buckets)
      : table_{table}, buckets_{buckets} {
    maskring::detail::require(buckets.count == table.buckets, "bias: the table has ", table.buckets,
                              " buckets, expected ", buckets.count);
  }
  template <class Score>
  constexpr Score operator()(Score s, int b, int h, int q, int kv) const {
    return at(b, h)(s, b, h, q, kv);
  }
  template <class T>
  constexpr void add_gradient(T dscore, T s, int b, int h, int q, int kv) const {
    at(b, h).add_gradient(dscore, s, b, h, q, kv);
  }
  constexpr head_bias<Buckets> at(int, int h) const {
    return {table_, index_t{table_.heads == 1 ? 0 : h} * table_.buckets, buckets_};
  }
  friend bool operator==(const bias&, const bias&) = default;

private:
  bias_view table_;
  Buckets buckets_;
};

template <class Buckets>
bias(const bias_view&, const Buckets&) -> bias<Buckets>;

} // namespace maskring::score
