// SPDX-License-Identifier: Apache-2.0
// Three-valued truth: what is known of a predicate over a whole rectangle of index pairs.
#pragma once

#include <concepts>
#include <cstdint>

namespace maskring {

/// What a mask keeps of a rectangle of (query, key) pairs: nothing, part of it, or all of it.
///
/// `none` and `all` are proofs; `some` means "part of it, or not known".
enum class verdict : std::uint8_t { none, some, all };

/// The arguments of a mask on which a value can depend, as bits.
enum axis : std::uint8_t {
  batch_axis = 1,
  head_axis = 2,
  query_axis = 4,
  key_axis = 8,
  every_axis = 15,
};

/// A Kleene truth value: the result of comparing ranges, together with the axes that it depends on.
///
/// `&`, `|`, `!`, `^`, `==`, `!=` (and `&&`, `||`, without short circuit) follow Kleene's strong
/// logic of three values (S. C. Kleene, Introduction to Metamathematics, 1952, section 64).
class kleene {
public:
  template <std::same_as<bool> Bool> // not from int, which select() takes as a range
  constexpr kleene(Bool truth) : value_{truth ? verdict::all : verdict::none} {}

  /// A verdict that an author states; it may depend on every argument of the mask.
  constexpr kleene(verdict value, std::uint8_t depends = every_axis)
      : value_{value}, depends_{depends} {}

  constexpr verdict value() const { return value_; }
  constexpr std::uint8_t depends() const { return depends_; }

  /// The same truth, known to depend on `axes` too.
  constexpr kleene also_depends(std::uint8_t axes) const {
    return {value_, static_cast<std::uint8_t>(depends_ | axes)};
  }

  /// Exists so that a mask which branches on a comparison gets this message instead of a riddle.
  template <std::same_as<bool> Bool>
  constexpr explicit operator Bool() const {
    static_assert(
        sizeof(Bool) == 0,
        "maskring: this mask or score modifier branches (if, ?:, conversion to bool) on a "
        "comparison of index ranges, which has no single truth value. Use maskring::select, "
        "& and |, or let the functor take int parameters, or wrap it: "
        "maskring::mask::elementwise{my_mask}");
    return false;
  }

  friend constexpr kleene operator&(kleene a, kleene b) {
    return {a.value_ < b.value_ ? a.value_ : b.value_, joint(a, b)};
  }
  friend constexpr kleene operator|(kleene a, kleene b) {
    return {a.value_ < b.value_ ? b.value_ : a.value_, joint(a, b)};
  }
  friend constexpr kleene operator!(kleene a) {
    return {a.value_ == verdict::all    ? verdict::none
            : a.value_ == verdict::none ? verdict::all
                                        : verdict::some,
            a.depends_};
  }
  friend constexpr kleene operator^(kleene a, kleene b) { return (a & (!b)) | ((!a) & b); }
  friend constexpr kleene operator==(kleene a, kleene b) { return !(a ^ b); }
  friend constexpr kleene operator!=(kleene a, kleene b) { return a ^ b; }

  // The mixed overloads keep the built-in && and || (through the conversion above) from tying.
  friend constexpr kleene operator&&(kleene a, kleene b) { return a & b; }
  friend constexpr kleene operator&&(kleene a, bool b) { return a & kleene{b}; }
  friend constexpr kleene operator&&(bool a, kleene b) { return kleene{a} & b; }
  friend constexpr kleene operator||(kleene a, kleene b) { return a | b; }
  friend constexpr kleene operator||(kleene a, bool b) { return a | kleene{b}; }
  friend constexpr kleene operator||(bool a, kleene b) { return kleene{a} | b; }

private:
  static constexpr std::uint8_t joint(kleene a, kleene b) {
    return static_cast<std::uint8_t>(a.depends_ | b.depends_);
  }

  verdict value_;
  std::uint8_t depends_ = 0;
};

} // namespace maskring
