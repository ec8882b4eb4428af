// SPDX-License-Identifier: Apache-2.0
// Masks with a length for each batch entry.
#pragma once

#include <maskring/mask/concepts.hpp>
#include <maskring/mask/table.hpp>

namespace maskring::mask {

/// kv < length[b]: sequences of different lengths, padded at the end.
class key_padding {
public:
  /// @throws std::invalid_argument if a length is negative.
  constexpr explicit key_padding(const int_table_view& lengths) : lengths_{lengths} {
    maskring::detail::require(lengths.least >= 0, "key_padding: the least length is ",
                              lengths.least, ", expected 0 or more");
  }
  constexpr auto operator()(auto b, auto, auto, auto kv) const { return kv < lengths_(b); }
  friend constexpr bool operator==(const key_padding&, const key_padding&) = default;

private:
  int_table_view lengths_;
};

/// kv < length[b] or q ≥ kv: prefix_lm with a prefix for each batch entry.
class batch_prefix_lm {
public:
  /// @throws std::invalid_argument if a length is negative.
  constexpr explicit batch_prefix_lm(const int_table_view& lengths) : lengths_{lengths} {
    maskring::detail::require(lengths.least >= 0, "batch_prefix_lm: the least length is ",
                              lengths.least, ", expected 0 or more");
  }
  constexpr auto operator()(auto b, auto, auto q, auto kv) const {
    return (kv < lengths_(b)) | (q >= kv);
  }
  friend constexpr bool operator==(const batch_prefix_lm&, const batch_prefix_lm&) = default;

private:
  int_table_view lengths_;
};

/// id[q] = id[kv]: tokens of one group see each other, in whatever order the groups are mixed.
/// For ids that ascend, `document` is exact; here two tiles whose ids overlap count as `some`.
class same_id {
public:
  constexpr explicit same_id(const int_table_view& ids) : ids_{ids} {}
  constexpr auto operator()(auto, auto, auto q, auto kv) const { return ids_(q) == ids_(kv); }
  friend constexpr bool operator==(const same_id&, const same_id&) = default;

private:
  int_table_view ids_;
};

} // namespace maskring::mask
