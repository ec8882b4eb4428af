// SPDX-License-Identifier: Apache-2.0
// Masks made of masks: and, or, not, offsets, and the adapters for masks that cannot be classified.
#pragma once

#include <maskring/mask/concepts.hpp>

namespace maskring::mask {

/// Keep where both keep. Also written `a & b` when one of them lives in maskring::mask.
template <mask_mod A, mask_mod B>
struct both {
  static constexpr bool needs_elements = maskring::needs_elements<A> || maskring::needs_elements<B>;
  A a;
  B b;
  constexpr bool operator()(int batch, int head, int q, int kv) const {
    return static_cast<bool>(a(batch, head, q, kv)) && static_cast<bool>(b(batch, head, q, kv));
  }
  constexpr kleene operator()(range batch, range head, range q, range kv) const {
    return ask(a, batch, head, q, kv) & ask(b, batch, head, q, kv);
  }
  friend bool operator==(const both&, const both&) = default;
};

/// Keep where at least one keeps. Also written `a | b`.
template <mask_mod A, mask_mod B>
struct either {
  static constexpr bool needs_elements = maskring::needs_elements<A> || maskring::needs_elements<B>;
  A a;
  B b;
  constexpr bool operator()(int batch, int head, int q, int kv) const {
    return static_cast<bool>(a(batch, head, q, kv)) || static_cast<bool>(b(batch, head, q, kv));
  }
  constexpr kleene operator()(range batch, range head, range q, range kv) const {
    return ask(a, batch, head, q, kv) | ask(b, batch, head, q, kv);
  }
  friend bool operator==(const either&, const either&) = default;
};

/// Keep where the other does not. Also written `!a`.
template <mask_mod A>
struct inverse {
  static constexpr bool needs_elements = maskring::needs_elements<A>;
  A a;
  constexpr bool operator()(int batch, int head, int q, int kv) const {
    return !static_cast<bool>(a(batch, head, q, kv));
  }
  constexpr kleene operator()(range batch, range head, range q, range kv) const {
    return !ask(a, batch, head, q, kv);
  }
  friend bool operator==(const inverse&, const inverse&) = default;
};

/// The mask with its query and key positions shifted: inner(q + q_offset, kv + kv_offset).
template <mask_mod Inner>
struct shift {
  static constexpr bool needs_elements = maskring::needs_elements<Inner>;
  Inner inner;
  int q_offset = 0;
  int kv_offset = 0;
  constexpr bool operator()(int batch, int head, int q, int kv) const {
    return static_cast<bool>(inner(batch, head, q + q_offset, kv + kv_offset));
  }
  constexpr kleene operator()(range batch, range head, range q, range kv) const {
    return ask(inner, batch, head, q + q_offset, kv + kv_offset);
  }
  friend bool operator==(const shift&, const shift&) = default;
};

/// A mask that branches on its indices, kept from being asked about ranges: its tiles are
/// classified by evaluating their elements.
template <mask_mod Inner>
struct elementwise {
  Inner inner;
  constexpr bool operator()(int batch, int head, int q, int kv) const {
    return static_cast<bool>(inner(batch, head, q, kv));
  }
  friend bool operator==(const elementwise&, const elementwise&) = default;
};

/// A promise that an element-wise mask is the same for every batch entry and head, so that one
/// block map serves all of them. A classifiable mask needs no such promise: it shows what it
/// depends on.
template <mask_mod Inner>
struct uniform {
  static constexpr bool needs_elements = true;
  Inner inner;
  constexpr bool operator()(int, int, int q, int kv) const {
    return static_cast<bool>(inner(0, 0, q, kv));
  }
  constexpr kleene operator()(range, range, range q, range kv) const {
    return {verdict::some, static_cast<std::uint8_t>(q.depends | kv.depends)};
  }
  friend bool operator==(const uniform&, const uniform&) = default;
};

template <class A>
elementwise(A) -> elementwise<A>;
template <class A>
uniform(A) -> uniform<A>;
template <class A>
shift(A, int, int) -> shift<A>;

template <mask_mod A, mask_mod B>
constexpr both<A, B> operator&(A a, B b) {
  return {a, b};
}
template <mask_mod A, mask_mod B>
constexpr either<A, B> operator|(A a, B b) {
  return {a, b};
}
template <mask_mod A>
constexpr inverse<A> operator!(A a) {
  return {a};
}

} // namespace maskring::mask
