// SPDX-License-Identifier: Apache-2.0
// Layouts inside layouts, for meshes of two dimensions.
#pragma once

#include <maskring/shard/layout.hpp>

namespace maskring::shard {

/// global = map(local + first): a shard from position `first` on.
template <index_map Map>
struct from_position {
  Map map;
  int first = 0;
  constexpr int operator()(int local) const { return map(local + first); }
  constexpr image operator()(range local) const { return map(local + first); }
  friend constexpr bool operator==(const from_position&, const from_position&) = default;
};

/// Each shard of another layout, cut in `parts` consecutive pieces of n = ⌈size / parts⌉ tokens
/// (the last ones can be shorter, or empty). Rank r holds piece r mod parts of shard r / parts: the
/// pieces of one shard belong to neighbouring ranks.
template <class Layout>
class subdivided {
public:
  static constexpr const char* name = "subdivided";
  /// @throws std::invalid_argument for no parts.
  constexpr subdivided(Layout outer, int parts) : outer_{outer}, parts_{parts} {
    maskring::detail::require(parts > 0, name, ": parts is ", parts, ", expected 1 or more");
  }
  constexpr const Layout& outer() const { return outer_; }
  constexpr int parts() const { return parts_; }
  constexpr index_t sequence() const { return outer_.sequence(); }
  constexpr int ranks() const { return outer_.ranks() * parts_; }
  constexpr index_t size(int rank) const {
    const index_t whole = outer_.size(rank / parts_);
    return clamp(whole - first(rank), index_t{0}, piece(rank));
  }
  constexpr auto map(int rank) const {
    const index_t begin = min(first(rank), outer_.size(rank / parts_));
    return from_position<decltype(outer_.map(0))>{outer_.map(rank / parts_),
                                                  static_cast<int>(begin)};
  }
  friend constexpr bool operator==(const subdivided&, const subdivided&) = default;

private:
  constexpr index_t piece(int rank) const {
    return detail::ceil_div(outer_.size(rank / parts_), index_t{parts_});
  }
  constexpr index_t first(int rank) const { return piece(rank) * (rank % parts_); }
  Layout outer_;
  int parts_;
};

} // namespace maskring::shard
