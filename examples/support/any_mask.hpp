// SPDX-License-Identifier: Apache-2.0
// One type for all masks, for programs on the host that choose theirs at run time.
#pragma once

#include "mask_names.hpp"
#include "tables.hpp"

#include <memory>
#include <string>
#include <vector>

namespace examples {

/// A mask behind two function pointers: slower an element than a mask of its own type, but a program
/// compiles its attention once for all of them. The mask itself is somebody else's.
class any_mask {
public:
  static constexpr bool needs_elements = true;  // a mask behind it may

  template <maskring::mask_mod Mask>
  explicit any_mask(const Mask* mask)
      : mask_{mask}, element_{[](const void* m, int b, int h, int q, int kv) {
          return static_cast<bool>((*static_cast<const Mask*>(m))(b, h, q, kv));
        }},
        ranges_{[](const void* m, maskring::range b, maskring::range h, maskring::range q,
                   maskring::range kv) {
          return maskring::ask(*static_cast<const Mask*>(m), b, h, q, kv);
        }} {}

  bool operator()(int b, int h, int q, int kv) const { return element_(mask_, b, h, q, kv); }
  maskring::kleene operator()(maskring::range b, maskring::range h, maskring::range q,
                              maskring::range kv) const {
    return ranges_(mask_, b, h, q, kv);
  }
  friend bool operator==(const any_mask& a, const any_mask& b) { return a.mask_ == b.mask_; }

private:
  const void* mask_;
  bool (*element_)(const void*, int, int, int, int);
  maskring::kleene (*ranges_)(const void*, maskring::range, maskring::range, maskring::range,
                              maskring::range);
};

/// Makes masks from text, and keeps them and their tables: names as with_mask takes them, joined by
/// & and |, with ! before a name; & binds tighter.
class mask_library {
public:
  explicit mask_library(const mask_shape& shape) : shape_{shape} {}

  /// @throws std::invalid_argument for unknown names and bad arguments.
  any_mask operator()(const std::string& text) {
    if (const auto at = text.find('|'); at != std::string::npos) {
      return keep(maskring::mask::either<any_mask, any_mask>{(*this)(text.substr(0, at)),
                                                             (*this)(text.substr(at + 1))});
    }
    if (const auto at = text.find('&'); at != std::string::npos) {
      return keep(maskring::mask::both<any_mask, any_mask>{(*this)(text.substr(0, at)),
                                                           (*this)(text.substr(at + 1))});
    }
    const auto first = text.find_first_not_of(' '), last = text.find_last_not_of(' ');
    const std::string name = first == std::string::npos ? "" : text.substr(first, last - first + 1);
    if (!name.empty() && name[0] == '!') {
      return keep(maskring::mask::inverse<any_mask>{(*this)(name.substr(1))});
    }
    return with_mask(name, shape_, tables_, [&](auto mask, const char*) { return keep(mask); });
  }

private:
  template <class Mask>
  any_mask keep(const Mask& mask) {
    const auto kept = std::make_shared<const Mask>(mask);
    masks_.push_back(kept);
    return any_mask{kept.get()};
  }
  mask_shape shape_;
  host_tables tables_;
  std::vector<std::shared_ptr<const void>> masks_;
};

}  // namespace examples
