// SPDX-License-Identifier: Apache-2.0
// What a mask modifier is, and asking it about a rectangle of index pairs.
#pragma once

#include <maskring/core/range.hpp>

#include <concepts>
#include <type_traits>

namespace maskring {

/// A mask modifier: a trivially copyable functor `mask(batch, head, query, key)` on ints, true
/// where the score is kept. The counterpart of FlexAttention's mask_mod.
template <class M>
concept mask_mod = std::is_trivially_copyable_v<M> && requires(const M m, int i) {
  {static_cast<bool>(m(i, i, i, i))};
};

/// A mask that can also be asked about whole ranges of indices: called with four ranges it returns
/// a `kleene` (what comparisons of ranges give) or a `verdict`. A functor with `auto` parameters is
/// taken to be one; one with `int` parameters is not and is evaluated element by element.
template <class M>
concept classifiable_mask = mask_mod<M> && requires(const M m, range r) {
  { m(r, r, r, r) } -> std::convertible_to<kleene>;
};

/// Whether the exact verdict of a tile takes a look at its elements: true of masks that cannot be
/// asked about ranges and of compositions that hold one (they say so by a member of this name).
template <mask_mod M>
inline constexpr bool needs_elements = [] {
  if constexpr (requires { M::needs_elements; }) {
    return M::needs_elements;
  } else {
    return !classifiable_mask<M>;
  }
}();

/// The mask's truth over ranges of its four arguments; `some` if it cannot be asked about ranges.
template <mask_mod M>
constexpr kleene ask(const M& mask, range batch, range head, range q, range kv) {
  if constexpr (classifiable_mask<M>) {
    return mask(batch, head, q, kv);
  } else {
    return verdict::some;
  }
}

/// The mask's truth over a rectangle, with the axes that it depends on.
template <mask_mod M>
constexpr kleene truth_of(const M& mask, const tile& where) {
  return ask(mask, where.batch.with_depends(batch_axis), where.head.with_depends(head_axis),
             where.q.with_depends(query_axis), where.kv.with_depends(key_axis));
}

/// What the mask keeps of a rectangle: `none` and `all` are proofs, otherwise `some`.
///
/// ```cpp
/// static_assert(verdict_of(mask::causal{}, tile{.q = {0, 127}, .kv = {128, 255}}) ==
/// verdict::none);
/// ```
template <mask_mod M>
constexpr verdict verdict_of(const M& mask, const tile& where) {
  return truth_of(mask, where).value();
}

namespace detail {

/// Whether the compiler can tell that a mask keeps all of a rectangle: only of masks without state.
template <class M, tile Where>
inline constexpr bool surely_keeps = [] {
  if constexpr (std::is_empty_v<M> && std::is_default_constructible_v<M>) {
    // Only a mask that the compiler can ask.
    if constexpr (requires {
                    typename std::bool_constant<verdict_of(M{}, Where) == verdict::all>;
                  }) {
      return verdict_of(M{}, Where) == verdict::all;
    }
  }
  return false;
}();

} // namespace detail

/// The verdict found by looking at every pair of the rectangle: exact, and as slow as it sounds.
template <mask_mod M>
constexpr verdict elementwise_verdict(const M& mask, int batch, int head, range q, range kv) {
  bool kept = false, dropped = false;
  for (index_t i = q.lo; i <= q.hi; i += q.step > 0 ? q.step : 1) {
    for (index_t j = kv.lo; j <= kv.hi; j += kv.step > 0 ? kv.step : 1) {
      (static_cast<bool>(mask(batch, head, static_cast<int>(i), static_cast<int>(j))) ? kept
                                                                                      : dropped) =
          true;
      if (kept && dropped) return verdict::some;
    }
  }
  return dropped ? verdict::none : verdict::all;
}

} // namespace maskring
