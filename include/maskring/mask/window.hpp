// SPDX-License-Identifier: Apache-2.0
// Windows with something more: attention sinks, gaps, tokens that all see.
#pragma once

#include <maskring/mask/concepts.hpp>
#include <maskring/mask/detail/pieces.hpp>
#include <maskring/mask/table.hpp>

namespace maskring::mask {

/// q ≥ kv and (q − kv ≤ width or kv < sinks): a causal window, and the first tokens stay in sight
/// (G. Xiao et al., StreamingLLM, 2023). For a learnable logit see `inputs::with_sink`.
class attention_sink {
public:
  /// @throws std::invalid_argument if width < 0 or sinks < 0.
  constexpr attention_sink(int width, int sinks) : width_{width}, sinks_{sinks} {
    maskring::detail::require(width >= 0, "attention_sink: width is ", width,
                              ", expected 0 or more");
    maskring::detail::require(sinks >= 0, "attention_sink: sinks is ", sinks,
                              ", expected 0 or more");
  }
  constexpr bool operator()(int, int, int q, int kv) const {
    return q >= kv && (q - kv <= width_ || kv < sinks_);
  }
  constexpr kleene operator()(range, range, range q, range kv) const {
    const detail::halves keys{kv, sinks_};
    detail::joined seen;
    if (!detail::is_empty(keys.below)) seen.add(q >= keys.below);
    if (!detail::is_empty(keys.from)) seen.add(within(q - keys.from, 0, width_));
    return seen.result(detail::joint_depends(q, kv));
  }
  friend constexpr bool operator==(attention_sink, attention_sink) = default;

private:
  int width_, sinks_;
};

/// |q − kv| ≤ width and |q − kv| a multiple of `dilation`: every dilation-th neighbour on both
/// sides (I. Beltagy et al., Longformer, 2020).
class dilated_window {
public:
  /// @throws std::invalid_argument if width < 0 or dilation < 1.
  constexpr dilated_window(int width, int dilation) : width_{width}, dilation_{dilation} {
    maskring::detail::require(width >= 0, "dilated_window: width is ", width,
                              ", expected 0 or more");
    maskring::detail::require(dilation >= 1, "dilated_window: dilation is ", dilation,
                              ", expected 1 or more");
  }
  constexpr bool operator()(int, int, int q, int kv) const {
    const int distance = q < kv ? kv - q : q - kv;
    return distance <= width_ && distance % dilation_ == 0;
  }
  constexpr kleene operator()(range, range, range q, range kv) const {
    const std::uint8_t depends = detail::joint_depends(q, kv);
    const range distance = q - kv; // exact: all sums of two progressions of one step
    const range near = detail::clip(distance, -index_t{width_}, index_t{width_} + 1);
    if (detail::is_empty(near)) return {verdict::none, depends};
    // The residues of a progression repeat after dilation / gcd members, and if the first is a
    // multiple of the gcd, one of these is a multiple of the dilation.
    const index_t common =
        maskring::detail::gcd(index_t{dilation_}, near.step); // of one member: the dilation
    if (near.lo % common != 0) return {verdict::none, depends};
    const index_t period = dilation_ / common;
    bool kept = period == 1 || (near.hi - near.lo) / near.step + 1 >= period;
    for (index_t x = near.lo; x <= near.hi && !kept; x += near.step) kept = x % dilation_ == 0;
    if (!kept) return {verdict::none, depends};
    const bool outside = near.lo > distance.lo || near.hi < distance.hi;
    return {outside || period > 1 ? verdict::some : verdict::all, depends};
  }
  friend constexpr bool operator==(dilated_window, dilated_window) = default;

private:
  int width_, dilation_;
};

/// |q − kv| ≤ width or flag[q] or flag[kv]: a window, and marked tokens that see and are seen by
/// all (Longformer's global attention; BigBird, M. Zaheer et al., 2020). Flags are entries other
/// than 0.
///
/// Loose over ranges where a window and flags keep a tile together that neither keeps alone.
class global_window {
public:
  /// @throws std::invalid_argument if width < 0.
  constexpr global_window(int width, const int_table_view& flags) : width_{width}, flags_{flags} {
    maskring::detail::require(width >= 0, "global_window: width is ", width,
                              ", expected 0 or more");
  }
  constexpr bool operator()(int, int, int q, int kv) const {
    return within(q - kv, -width_, width_) || flags_(q) != 0 || flags_(kv) != 0;
  }
  constexpr kleene operator()(range, range, range q, range kv) const {
    return within(q - kv, -width_, width_) | (flags_(q) != 0) | (flags_(kv) != 0);
  }
  friend constexpr bool operator==(const global_window&, const global_window&) = default;

private:
  int width_;
  int_table_view flags_;
};

} // namespace maskring::mask
