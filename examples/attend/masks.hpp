// SPDX-License-Identifier: Apache-2.0
// The masks that the program knows, from text.
#pragma once

#include "support/any_mask.hpp"

#include <algorithm>
#include <iterator>

namespace attend {

inline constexpr examples::named_entry mask_names[] = {
    {"full", "", "always", "full", "mask/basic.hpp"},
    {"causal", "", "q ≥ kv", "causal", "mask/basic.hpp"},
    {"sliding_window", ":W", "0 ≤ q − kv ≤ W", "sliding_window", "mask/basic.hpp"},
    {"attention_sink", ":W:N", "q ≥ kv and (q − kv ≤ W or kv < N)", "attention_sink",
     "mask/window.hpp"},
    {"dilated_window", ":W:D", "|q − kv| ≤ W, every D-th", "dilated_window", "mask/window.hpp"},
    {"prefix_lm", ":P", "kv < P or q ≥ kv", "prefix_lm", "mask/basic.hpp"},
    {"document", "", "q and kv are in one document", "document", "mask/document.hpp"},
    {"document_causal", "", "q and kv are in one document and q ≥ kv", "document",
     "mask/document.hpp"},
};

/// The masks of examples::mask_names that are not above: their tables are made up.
inline std::vector<examples::named_entry> further_mask_names() {
  std::vector<examples::named_entry> out;
  for (const examples::named_entry& e : examples::mask_names) {
    const auto same = [&](const examples::named_entry& m) { return std::string{m.name} == e.name; };
    if (std::none_of(std::begin(mask_names), std::end(mask_names), same)) out.push_back(e);
  }
  return out;
}

/// Makes the mask that `text` names and keeps what it reads: names joined by & and |, with ! before
/// a name; & binds tighter.
class masks {
public:
  /// @param document_lengths may be empty; the documents must cover `tokens` tokens.
  masks(const std::vector<int>& document_lengths, const examples::mask_shape& shape)
      : documents_{maskring::mask::document_table::from_lengths(document_lengths)},
        have_documents_{!document_lengths.empty()},
        further_{shape} {
    if (!have_documents_) return;
    documents_.require_covers(shape.q_len);
    documents_.require_covers(shape.kv_len);
  }

  /// @throws std::invalid_argument for unknown names and bad arguments.
  examples::any_mask operator()(const std::string& text) {
    namespace mask = maskring::mask;
    using examples::any_mask;
    if (const auto at = text.find('|'); at != std::string::npos) {
      return keep(mask::either<any_mask, any_mask>{(*this)(text.substr(0, at)),
                                                   (*this)(text.substr(at + 1))});
    }
    if (const auto at = text.find('&'); at != std::string::npos) {
      return keep(mask::both<any_mask, any_mask>{(*this)(text.substr(0, at)),
                                                 (*this)(text.substr(at + 1))});
    }
    const auto first = text.find_first_not_of(' '), last = text.find_last_not_of(' ');
    const std::string trimmed =
        first == std::string::npos ? "" : text.substr(first, last - first + 1);
    if (!trimmed.empty() && trimmed[0] == '!') {
      return keep(mask::inverse<any_mask>{(*this)(trimmed.substr(1))});
    }
    return named(trimmed);
  }

private:
  examples::any_mask named(const std::string& text) {
    namespace mask = maskring::mask;
    examples::words arguments{text};
    const std::string& name = arguments.name();
    const auto argument = [&](const char* what) { return arguments.required_integer(what); };
    if (name == "full") return finish(arguments, mask::full{});
    if (name == "causal") return finish(arguments, mask::causal{});
    if (name == "sliding_window") {
      return finish(arguments, mask::sliding_window{argument("width")});
    }
    if (name == "attention_sink") {
      const int width = argument("width");
      return finish(arguments, mask::attention_sink{width, argument("number of sinks")});
    }
    if (name == "dilated_window") {
      const int width = argument("width");
      return finish(arguments, mask::dilated_window{width, argument("dilation")});
    }
    if (name == "prefix_lm") return finish(arguments, mask::prefix_lm{argument("prefix")});
    if (name == "document" || name == "document_causal") {
      if (!have_documents_) {
        throw std::invalid_argument("mask " + name +
                                    " expects the lengths of the documents, "
                                    "--doc-lengths");
      }
      if (name == "document") return finish(arguments, mask::document{documents_.view()});
      return finish(arguments, mask::document{documents_.view(), mask::causal{}});
    }
    return further_(text);
  }

  template <class Mask>
  examples::any_mask finish(const examples::words& arguments, const Mask& mask) {
    arguments.finish();
    return keep(mask);
  }

  template <class Mask>
  examples::any_mask keep(const Mask& mask) {
    const auto kept = std::make_shared<const Mask>(mask);
    kept_.push_back(kept);
    return examples::any_mask{kept.get()};
  }

  maskring::mask::document_table documents_;
  bool have_documents_;
  examples::mask_library further_;
  std::vector<std::shared_ptr<const void>> kept_;
};

} // namespace attend
