// SPDX-License-Identifier: Apache-2.0
// The masks that everybody knows: full, causal, sliding window, prefix.
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/mask/concepts.hpp>

namespace maskring::mask {

/// Keep everything.
struct full {
  template <class Index>
  constexpr auto operator()(auto, auto, Index, auto) const {
    if constexpr (std::same_as<Index, range>) {
      return kleene{true};
    } else {
      return true;
    }
  }
  friend constexpr bool operator==(full, full) = default;
};

/// q ≥ kv: each query sees the keys up to its own position (A. Vaswani et al., 2017).
struct causal {
  constexpr auto operator()(auto, auto, auto q, auto kv) const { return q >= kv; }
  friend constexpr bool operator==(causal, causal) = default;
};

/// 0 ≤ q − kv ≤ width: causal, with a look-back of `width` tokens (I. Beltagy et al., Longformer,
/// 2020).
class sliding_window {
public:
  /// @throws std::invalid_argument if width < 0.
  constexpr explicit sliding_window(int width) : width_{width} {
    maskring::detail::require(width >= 0, "sliding_window: width is ", width,
                              ", expected 0 or more");
  }
  constexpr int width() const { return width_; }
  // Written as other masks are, so that a composition with them shares the comparison.
  constexpr bool operator()(int, int, int q, int kv) const { return q >= kv && q - kv <= width_; }
  constexpr kleene operator()(range, range, range q, range kv) const {
    return within(q - kv, 0, width_);
  }
  friend constexpr bool operator==(sliding_window, sliding_window) = default;

private:
  int width_;
};

/// kv < length or q ≥ kv: a prefix that all see, causal after it (C. Raffel et al., T5, 2020).
class prefix_lm {
public:
  /// @throws std::invalid_argument if length < 0.
  constexpr explicit prefix_lm(int length) : length_{length} {
    maskring::detail::require(length >= 0, "prefix_lm: length is ", length, ", expected 0 or more");
  }
  constexpr int length() const { return length_; }
  constexpr auto operator()(auto, auto, auto q, auto kv) const {
    return (kv < length_) | (q >= kv);
  }
  friend constexpr bool operator==(prefix_lm, prefix_lm) = default;

private:
  int length_;
};

} // namespace maskring::mask
