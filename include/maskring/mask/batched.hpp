// SPDX-License-Identifier: Apache-2.0
// Segments of one length, none of which sees another.
#pragma once

#include <maskring/mask/basic.hpp>
#include <maskring/mask/detail/pieces.hpp>

namespace maskring::mask {

/// q // n = kv // n and inner(q % n, kv % n): a batch of sequences of length n laid out as one
/// (collected in attention-gym, 2024).
///
/// Exact over ranges if `inner` is. Whole segments repeat, so the two at the ends and as many as
/// the strides of the ranges take to repeat decide.
template <mask_mod Inner = full>
class batched {
public:
  static constexpr bool needs_elements = maskring::needs_elements<Inner>;

  /// @throws std::invalid_argument if length < 1.
  constexpr batched(Inner inner, int length) : inner_{inner}, length_{length} {
    maskring::detail::require(length >= 1, "batched: length is ", length, ", expected 1 or more");
  }

  constexpr bool operator()(int b, int h, int q, int kv) const {
    const int start = floor_div(q, length_) * length_;
    return kv >= start && kv - start < length_ &&
           static_cast<bool>(inner_(b, h, q - start, kv - start));
  }

  constexpr kleene operator()(range b, range h, range q, range kv) const {
    const std::uint8_t depends = detail::joint_depends(q, kv);
    const index_t n = length_;
    const index_t first = max(floor_div(q.lo, n), floor_div(kv.lo, n));
    const index_t last = min(floor_div(q.hi, n), floor_div(kv.hi, n));
    const auto ask_segment = [&](index_t segment) -> kleene {
      const index_t start = segment * n;
      const range q_part = detail::clip(q, start, start + n);
      const range kv_part = detail::clip(kv, start, start + n);
      if (detail::is_empty(q_part) || detail::is_empty(kv_part)) return {verdict::none, depends};
      return ask(inner_, b, h, q_part - start, kv_part - start).also_depends(depends);
    };
    const bool one_segment = floor_div(min(q.lo, kv.lo), n) == floor_div(max(q.hi, kv.hi), n);
    if (one_segment) return ask_segment(first);
    // Several segments: pairs across them are dropped, so the rest can only make it `some`.
    const index_t q_step = max(q.step, index_t{1}), kv_step = max(kv.step, index_t{1});
    const index_t steps = q_step / maskring::detail::gcd(q_step, kv_step) * kv_step;
    const index_t period = steps / maskring::detail::gcd(steps, n);
    kleene seen{verdict::none, depends};
    for (index_t segment = first; segment <= last; ++segment) {
      if (segment - first > period + 1) segment = last;
      seen = seen | (ask_segment(segment) & kleene{verdict::some, depends});
      if (seen.value() != verdict::none) break;
    }
    return seen;
  }
  friend bool operator==(const batched&, const batched&) = default;

private:
  Inner inner_;
  int length_;
};

template <class Inner>
batched(Inner, int) -> batched<Inner>;

} // namespace maskring::mask
