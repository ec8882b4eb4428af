// SPDX-License-Identifier: Apache-2.0
// One type for all masks, for programs on the host that choose theirs at run time.
#pragma once

#include "mask_names.hpp"
#include "tables.hpp"

#include <memory>
#include <string>
#include <vector>

namespace examples {

/// A mask behind two function pointers: slower an element than a mask of its own type, but a
/// program compiles its attention once for all of them. The mask itself is somebody else's.
class any_mask {
public:
  static constexpr bool needs_elements = true; // a mask behind it may

  template <maskring::mask_mod Mask>
  explicit any_mask(const Mask* mask)
      : mask_{mask},
        element_{[](const void* m, int b, int h, int q, int kv) {
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

/// Keeps masks on the host, and their tables.
class host_masks {
public:
  host_tables& tables() { return tables_; }
  template <class Mask>
  any_mask operator()(const Mask& mask) {
    const auto kept = std::make_shared<const Mask>(mask);
    masks_.push_back(kept);
    return any_mask{kept.get()};
  }

private:
  host_tables tables_;
  std::vector<std::shared_ptr<const void>> masks_;
};

/// Makes masks from text: names as with_mask takes them, joined by & and |, with ! before a name; &
/// binds tighter. The keeper keeps them and makes one type of all.
template <class Keeper>
class named_masks {
public:
  using any = decltype(std::declval<Keeper&>()(maskring::mask::full{}));

  explicit named_masks(const mask_shape& shape) : shape_{shape} {}

  /// @throws std::invalid_argument for unknown names and bad arguments.
  any operator()(const std::string& text) {
    if (const auto at = text.find('|'); at != std::string::npos) {
      return keep_(maskring::mask::either<any, any>{(*this)(text.substr(0, at)),
                                                    (*this)(text.substr(at + 1))});
    }
    if (const auto at = text.find('&'); at != std::string::npos) {
      return keep_(maskring::mask::both<any, any>{(*this)(text.substr(0, at)),
                                                  (*this)(text.substr(at + 1))});
    }
    const auto first = text.find_first_not_of(' '), last = text.find_last_not_of(' ');
    const std::string name = first == std::string::npos ? "" : text.substr(first, last - first + 1);
    if (!name.empty() && name[0] == '!') {
      return keep_(maskring::mask::inverse<any>{(*this)(name.substr(1))});
    }
    return with_mask(name, shape_, keep_.tables(),
                     [&](const auto& mask, const char*) { return keep_(mask); });
  }

private:
  mask_shape shape_;
  Keeper keep_;
};

using mask_library = named_masks<host_masks>;

} // namespace examples
