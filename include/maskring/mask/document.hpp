// SPDX-License-Identifier: Apache-2.0
// Packed documents: several sequences one behind the other, none of which sees another.
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/mask/basic.hpp>
#include <maskring/mask/detail/pieces.hpp>
#include <maskring/mask/table.hpp>

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace maskring::mask {

/// Where the documents of a packed sequence begin, readable in constant time for a token; points to
/// memory that somebody else owns, host or device. Two are equal if they come from one table.
struct document_view {
  const int* ids = nullptr;    ///< [tokens], at least 1: the document of each token, ascending
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
  /// @throws std::invalid_argument for a negative length, or 2^31 tokens or more in all.
  static document_table from_lengths(std::span<const int> lengths) {
    index_t total = 0;
    for (std::size_t d = 0; d < lengths.size(); ++d) {
      maskring::detail::require(lengths[d] >= 0, "document: length of document ", d, " is ",
                                lengths[d], ", expected 0 or more");
      total += lengths[d];
      maskring::detail::require(total < (index_t{1} << 31), "document: the lengths add up to ",
                                total, " tokens or more, expected less than 2^31");
    }
    document_table table;
    table.tokens_ = static_cast<int>(total);
    table.documents_ = static_cast<int>(lengths.size());
    table.memory_.reserve(static_cast<std::size_t>(total) + lengths.size() + 1);
    for (std::size_t d = 0; d < lengths.size(); ++d) {
      table.memory_.insert(table.memory_.end(), static_cast<std::size_t>(lengths[d]),
                           static_cast<int>(d));
    }
    int start = 0;
    for (int length : lengths) table.memory_.push_back(std::exchange(start, start + length));
    table.memory_.push_back(start);
    return table;
  }

  /// From the document number of each token, ascending from 0 or more.
  /// @throws std::invalid_argument if they are negative or not sorted.
  static document_table from_ids(std::span<const int> ids) {
    std::vector<int> lengths;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const int least = i == 0 ? 0 : ids[i - 1];
      maskring::detail::require(ids[i] >= least, "document: id of token ", i, " is ", ids[i],
                                ", expected ", least, " or more (sorted ids)");
      // Ids of tokens are below the token count unless documents are empty; bound what is stored.
      maskring::detail::require(static_cast<std::size_t>(ids[i]) <=
                                    ids.size() + (std::size_t{1} << 20),
                                "document: id of token ", i, " is ", ids[i],
                                ", expected an id below ", ids.size(), " or few empty documents");
      lengths.resize(static_cast<std::size_t>(ids[i]) + 1);
      ++lengths.back();
    }
    return from_lengths(lengths);
  }

  /// @throws std::invalid_argument unless the table covers exactly `tokens` tokens.
  void require_covers(index_t tokens) const {
    maskring::detail::require(tokens_ == tokens, "document: the table covers ", tokens_,
                              " tokens, expected the sequence's ", tokens);
  }

  std::span<const int> memory() const { return memory_; }
  document_view view_at(const int* memory) const {
    return {memory, memory + tokens_, tokens_, documents_, serial_};
  }
  /// Valid while the table lives.
  document_view view() const { return view_at(memory_.data()); }

private:
  document_table() : serial_{next_serial()} {}

  std::vector<int> memory_; // ids, then starts
  int tokens_ = 0, documents_ = 0;
  std::uint64_t serial_ = 0;
};

/// doc[q] = doc[kv] and inner(q − start, kv − start), positions counted from the document's start
/// (M. M. Krell et al., "Efficient Sequence Packing without Cross-contamination", 2021).
///
/// Exact over ranges if `inner` is: only documents that both ranges touch are looked at, and the
/// first in which something is kept ends the search. Tokens outside the table see nothing.
template <mask_mod Inner = full>
struct document {
  static constexpr bool needs_elements = maskring::needs_elements<Inner>;
  document_view docs;
  Inner inner{};

  constexpr bool operator()(int b, int h, int q, int kv) const {
    // No branches: everything is read or asked at a place that exists, and kernels then read the
    // tables once for a row or column of elements.
    const int q_at = max(min(q, docs.tokens - 1), 0);
    const int kv_at = max(min(kv, docs.tokens - 1), 0);
    const int id = docs.ids[q_at];
    const int start = docs.starts[id];
    const bool together = id == docs.ids[kv_at];
    const bool kept =
        static_cast<bool>(inner(b, h, q_at - start, (together ? kv_at : q_at) - start));
    return together & kept & has(q) & has(kv);
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
      const range q_part = detail::clip(q, start, stop), kv_part = detail::clip(kv, start, stop);
      if (detail::is_empty(q_part) || detail::is_empty(kv_part)) continue;
      const kleene here = ask(inner, b, h, q_part - start, kv_part - start);
      if (one) return here.also_depends(depends);
      seen = seen | (here & kleene{verdict::some, depends});
      if (seen.value() != verdict::none) break;
    }
    return seen;
  }

  friend bool operator==(const document&, const document&) = default;

private:
  // Not by comparing the token with the clamped one: ptxas 13.0 makes one VIMNMX.RELU of clamp and
  // comparison, and its predicate is wrong.
  constexpr bool has(int token) const { return (token >= 0) & (token < docs.tokens); }
};

document(document_view)->document<full>;
template <class Inner>
document(document_view, Inner) -> document<Inner>;

} // namespace maskring::mask
