// SPDX-License-Identifier: Apache-2.0
// Packed documents: several sequences one behind the other, none of which sees another.
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/mask/basic.hpp>

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

namespace maskring::mask {

/// Where the documents of a packed sequence begin, readable in constant time for a token; points to
/// memory that somebody else owns, host or device. Two are equal if they come from one table.
struct document_view {
  const int* ids = nullptr;    ///< [tokens], the document of each token, ascending
  const int* starts = nullptr; ///< [documents + 1], the first token of each, then `tokens`
  int tokens = 0;
  int documents = 0;
  std::uint64_t serial = 0; ///< of the table, so that caches tell tables apart

  friend constexpr bool operator==(const document_view& a, const document_view& b) {
    return a.serial == b.serial && a.ids == b.ids;
  }
};

/// Owns the tables of a packed sequence on the host.
class document_table {
public:
  /// Documents of the given lengths, one behind the other. Empty ones are allowed.
  /// @throws std::invalid_argument for a negative length, or one beyond 2^31 − 1 tokens in all.
  static document_table from_lengths(std::span<const int> lengths) {
    document_table table;
    index_t total = 0;
    table.starts_.push_back(0);
    for (std::size_t d = 0; d < lengths.size(); ++d) {
      detail::require(lengths[d] >= 0, "document: length of document ", d, " is ", lengths[d],
                      ", expected 0 or more");
      total += lengths[d];
      detail::require(total < (index_t{1} << 31), "document: the lengths add up to ", total,
                      " tokens or more, expected less than 2^31");
      table.ids_.resize(static_cast<std::size_t>(total), static_cast<int>(d));
      table.starts_.push_back(static_cast<int>(total));
    }
    return table;
  }

  /// From the document number of each token, ascending from 0 or more.
  /// @throws std::invalid_argument if they are negative or not sorted.
  static document_table from_ids(std::span<const int> ids) {
    std::vector<int> lengths;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      detail::require(ids[i] >= (i == 0 ? 0 : ids[i - 1]), "document: id of token ", i, " is ",
                      ids[i], ", expected ", i == 0 ? 0 : ids[i - 1], " or more (sorted ids)");
      // Ids of tokens are below the token count unless documents are empty; bound what is stored.
      detail::require(static_cast<std::size_t>(ids[i]) <= ids.size() + (std::size_t{1} << 20),
                      "document: id of token ", i, " is ", ids[i], ", expected an id below ",
                      ids.size(), " or few empty documents");
      lengths.resize(static_cast<std::size_t>(ids[i]) + 1);
      ++lengths.back();
    }
    return from_lengths(lengths);
  }

  /// @throws std::invalid_argument unless the table covers exactly `tokens` tokens.
  void require_covers(index_t tokens) const {
    detail::require(static_cast<index_t>(ids_.size()) == tokens, "document: the table covers ",
                    ids_.size(), " tokens, expected the sequence's ", tokens);
  }

  /// Valid while the table lives.
  document_view view() const {
    return {ids_.data(), starts_.data(), static_cast<int>(ids_.size()),
            static_cast<int>(starts_.size()) - 1, serial_};
  }

private:
  document_table() {
    static std::atomic<std::uint64_t> next{1};
    serial_ = next++;
  }

  std::vector<int> ids_, starts_;
  std::uint64_t serial_ = 0;
};

/// doc[q] = doc[kv] and inner(q − start, kv − start), positions counted from the document's start.
///
/// Exact over ranges if `inner` is: only documents that both ranges touch are looked at, and the
/// first in which something is kept ends the search. Tokens outside the table see nothing.
template <mask_mod Inner = full>
struct document {
  static constexpr bool needs_elements = maskring::needs_elements<Inner>;
  document_view docs;
  Inner inner{};

  constexpr bool operator()(int b, int h, int q, int kv) const {
    if (q < 0 || kv < 0 || q >= docs.tokens || kv >= docs.tokens) return false;
    const int id = docs.ids[q];
    const int start = docs.starts[id];
    return id == docs.ids[kv] && static_cast<bool>(inner(b, h, q - start, kv - start));
  }

  constexpr kleene operator()(range b, range h, range q, range kv) const {
    const auto depends = static_cast<std::uint8_t>(q.depends | kv.depends);
    const index_t end = docs.tokens;
    if (q.lo < 0 || kv.lo < 0 || q.hi >= end || kv.hi >= end) {
      const bool outside = q.hi < 0 || kv.hi < 0 || q.lo >= end || kv.lo >= end;
      return {outside ? verdict::none : verdict::some,
              static_cast<std::uint8_t>(depends | b.depends | h.depends)};
    }
    const int q_first = docs.ids[q.lo], q_last = docs.ids[q.hi];
    const int kv_first = docs.ids[kv.lo], kv_last = docs.ids[kv.hi];
    const bool one = q_first == q_last && kv_first == kv_last && q_first == kv_first;
    kleene seen{verdict::none, depends};
    for (int id = max(q_first, kv_first); id <= min(q_last, kv_last); ++id) {
      const index_t start = docs.starts[id], stop = docs.starts[id + 1];
      const range q_part = clip(q, start, stop), kv_part = clip(kv, start, stop);
      if (q_part.lo > q_part.hi || kv_part.lo > kv_part.hi) continue;
      const kleene here = ask(inner, b, h, q_part - start, kv_part - start);
      if (one) return here.also_depends(depends);
      seen = seen | (here & kleene{verdict::some, depends});
      if (seen.value() != verdict::none) break;
    }
    return seen;
  }

  friend constexpr bool operator==(const document&, const document&) = default;

private:
  // The members of r within [start, stop); lo > hi if there are none.
  static constexpr range clip(range r, index_t start, index_t stop) {
    const index_t step = r.step > 0 ? r.step : 1;
    const index_t lo = r.lo >= start ? r.lo : r.lo + (start - r.lo + step - 1) / step * step;
    const index_t hi = r.hi < stop ? r.hi : r.hi - (r.hi - stop + step) / step * step;
    return {lo, hi, step, r.depends};
  }
};

document(document_view)->document<full>;
template <class Inner>
document(document_view, Inner) -> document<Inner>;

} // namespace maskring::mask
