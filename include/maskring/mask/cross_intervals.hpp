// SPDX-License-Identifier: Apache-2.0
// Text that looks at images: each image is seen by a stretch of the text.
#pragma once

#include <maskring/mask/concepts.hpp>
#include <maskring/mask/detail/pieces.hpp>
#include <maskring/mask/table.hpp>

namespace maskring::mask {

/// first[i] ≤ q < last[i] with i = kv // image_tokens: keys are images of equally many tokens, and
/// image i is seen by the queries of its interval (J.-B. Alayrac et al., Flamingo, 2022).
///
/// Ranges are exact up to 256 images at once; beyond that by the extremes of their intervals.
class cross_intervals {
public:
  /// @throws std::invalid_argument if the tables differ in size or image_tokens < 1.
  constexpr cross_intervals(const int_table_view& first, const int_table_view& last,
                            int image_tokens)
      : first_{first}, last_{last}, image_tokens_{image_tokens} {
    maskring::detail::require(first.size == last.size, "cross_intervals: last has ", last.size,
                              " entries, expected ", first.size, " (as first)");
    maskring::detail::require(image_tokens >= 1, "cross_intervals: image_tokens is ", image_tokens,
                              ", expected 1 or more");
  }

  constexpr bool operator()(int, int, int q, int kv) const {
    const int image = floor_div(kv, image_tokens_);
    return first_(image) <= q && q < last_(image);
  }

  constexpr kleene operator()(range, range, range q, range kv) const {
    constexpr index_t most = 256;
    const std::uint8_t depends = detail::joint_depends(q, kv);
    const range images = floor_div(kv, image_tokens_);
    detail::joined seen;
    if (images.hi - images.lo >= most) {
      const range first = first_(images), last = last_(images);
      seen.add((first <= q) & (q < last));
    } else {
      for (index_t i = images.lo; i <= images.hi && !seen.mixed(); ++i) {
        const index_t start = i * image_tokens_;
        if (detail::is_empty(detail::clip(kv, start, start + image_tokens_))) continue;
        seen.add(within(q, first_(static_cast<int>(i)), last_(static_cast<int>(i)) - 1));
      }
    }
    return seen.result(depends);
  }
  friend constexpr bool operator==(const cross_intervals&, const cross_intervals&) = default;

private:
  int_table_view first_, last_;
  int image_tokens_;
};

} // namespace maskring::mask
