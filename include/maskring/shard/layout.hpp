// SPDX-License-Identifier: Apache-2.0
// How a sequence is split over ranks, and where a rank's tokens stand in the whole sequence.
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/core/range.hpp>

#include <concepts>

namespace maskring::shard {

/// At most two ranges of global indices: the image of a range of local ones.
struct image {
  range pieces[2];
  int count = 0;
};

/// The identity: a sequence that is not split, or that has been gathered in its global order.
struct whole {
  constexpr int operator()(int local) const { return local; }
  constexpr image operator()(range local) const { return {{local, {}}, 1}; }
  friend constexpr bool operator==(whole, whole) = default;
};

/// global = local + offset.
struct offset_map {
  int offset = 0;
  constexpr int operator()(int local) const { return local + offset; }
  constexpr image operator()(range local) const { return {{local + offset, {}}, 1}; }
  friend constexpr bool operator==(offset_map, offset_map) = default;
};

/// global = local·step + first.
struct strided_map {
  int first = 0;
  int step = 1;
  constexpr int operator()(int local) const { return local * step + first; }
  constexpr image operator()(range local) const { return {{local * step + first, {}}, 1}; }
  friend constexpr bool operator==(strided_map, strided_map) = default;
};

/// global = local + head_offset before `split`, local + tail_offset from there on.
struct head_tail_map {
  int split = 0;
  int head_offset = 0;
  int tail_offset = 0;
  constexpr int operator()(int local) const {
    return local + (local < split ? head_offset : tail_offset);
  }
  constexpr image operator()(range local) const {
    if (local.hi < split) return {{local + head_offset, {}}, 1};
    if (local.lo >= split) return {{local + tail_offset, {}}, 1};
    const index_t step = local.step > 0 ? local.step : 1;
    const index_t last = local.lo + (split - 1 - local.lo) / step * step;
    const range head{local.lo, last, step, local.depends};
    const range tail{last + step, local.hi, step, local.depends};
    return {{head + head_offset, tail + tail_offset}, 2};
  }
  friend constexpr bool operator==(head_tail_map, head_tail_map) = default;
};

/// A map from a rank's local indices to global ones: over ints, and over ranges piece by piece.
template <class M>
concept index_map = std::is_trivially_copyable_v<M> && requires(const M m, int i, range r) {
  { m(i) } -> std::convertible_to<int>;
  { m(r) } -> std::same_as<image>;
};

namespace detail {
constexpr void check_layout(const char* name, index_t sequence, int ranks) {
  maskring::detail::require(sequence >= 0 && sequence < (index_t{1} << 31), name, ": sequence is ",
                            sequence, ", expected 0 to 2^31 - 1");
  maskring::detail::require(ranks > 0, name, ": ranks is ", ranks, ", expected 1 or more");
}
constexpr index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }
} // namespace detail

/// Rank r holds tokens [r·n, (r+1)·n) with n = ⌈sequence / ranks⌉, cut off at the end: the last
/// ranks can hold fewer, or none.
class contiguous {
public:
  static constexpr const char* name = "contiguous";
  /// @throws std::invalid_argument for a negative sequence or no ranks.
  constexpr contiguous(index_t sequence, int ranks) : sequence_{sequence}, ranks_{ranks} {
    detail::check_layout(name, sequence, ranks);
  }
  constexpr index_t sequence() const { return sequence_; }
  constexpr int ranks() const { return ranks_; }
  constexpr index_t shard() const { return detail::ceil_div(sequence_, ranks_); }
  constexpr index_t size(int rank) const {
    return clamp(sequence_ - rank * shard(), index_t{0}, shard());
  }
  constexpr offset_map map(int rank) const {
    return {static_cast<int>(min(rank * shard(), sequence_))};
  }
  friend constexpr bool operator==(contiguous, contiguous) = default;

private:
  index_t sequence_;
  int ranks_;
};

/// The sequence in 2·ranks chunks of n = ⌈sequence / (2·ranks)⌉; rank r holds chunk r and, behind
/// it, chunk 2·ranks − 1 − r, so that all have the same share of a causal mask (head-tail
/// balancing).
class zigzag {
public:
  static constexpr const char* name = "zigzag";
  /// @throws std::invalid_argument for a negative sequence or no ranks.
  constexpr zigzag(index_t sequence, int ranks) : sequence_{sequence}, ranks_{ranks} {
    detail::check_layout(name, sequence, ranks);
  }
  constexpr index_t sequence() const { return sequence_; }
  constexpr int ranks() const { return ranks_; }
  constexpr index_t chunk() const { return detail::ceil_div(sequence_, 2 * index_t{ranks_}); }
  constexpr index_t size(int rank) const { return length(rank) + length(tail(rank)); }
  constexpr head_tail_map map(int rank) const {
    const index_t head = length(rank);
    return {static_cast<int>(head), static_cast<int>(rank * chunk()),
            static_cast<int>(tail(rank) * chunk() - head)};
  }
  friend constexpr bool operator==(zigzag, zigzag) = default;

private:
  constexpr index_t tail(int rank) const { return 2 * index_t{ranks_} - 1 - rank; }
  constexpr index_t length(index_t piece) const {
    return clamp(sequence_ - piece * chunk(), index_t{0}, chunk());
  }
  index_t sequence_;
  int ranks_;
};

/// Rank r holds tokens r, r + ranks, r + 2·ranks, … (W. Brandon et al., Striped Attention, 2023).
class striped {
public:
  static constexpr const char* name = "striped";
  /// @throws std::invalid_argument for a negative sequence or no ranks.
  constexpr striped(index_t sequence, int ranks) : sequence_{sequence}, ranks_{ranks} {
    detail::check_layout(name, sequence, ranks);
  }
  constexpr index_t sequence() const { return sequence_; }
  constexpr int ranks() const { return ranks_; }
  constexpr index_t size(int rank) const {
    return max(index_t{0}, detail::ceil_div(sequence_ - rank, ranks_));
  }
  constexpr strided_map map(int rank) const { return {rank, ranks_}; }
  friend constexpr bool operator==(striped, striped) = default;

private:
  index_t sequence_;
  int ranks_;
};

/// A way to split a sequence: how many tokens each rank holds, and which.
template <class L>
concept layout = requires(const L l, int rank) {
  { l.sequence() } -> std::convertible_to<index_t>;
  { l.ranks() } -> std::convertible_to<int>;
  { l.size(rank) } -> std::convertible_to<index_t>;
  { l.map(rank) } -> index_map;
};

} // namespace maskring::shard
