// SPDX-License-Identifier: Apache-2.0
// Documents that continue a common beginning, which is stored once.
#pragma once

#include <maskring/mask/detail/pieces.hpp>
#include <maskring/mask/document.hpp>

namespace maskring::mask {

/// With d = doc[q] and p = prefix[d]: (kv ≥ start[d] and q ≥ kv) or (d ≠ p and kv is in document
/// p). A document is causal within itself and sees the whole of its prefix document; one that is
/// its own prefix sees only itself. Many answers to one prompt in preference training share it like
/// this (collected in attention-gym, 2024).
class shared_prefix {
public:
  /// @param prefix for each document the document that it continues.
  /// @throws std::invalid_argument if there are fewer entries than documents, or one is no
  /// document.
  constexpr shared_prefix(const document_view& docs, const int_table_view& prefix)
      : docs_{docs}, prefix_{prefix} {
    maskring::detail::require(prefix.size >= docs.documents, "shared_prefix: prefix has ",
                              prefix.size, " entries, expected ", docs.documents);
    maskring::detail::require(prefix.least >= 0, "shared_prefix: the least prefix is ",
                              prefix.least, ", expected 0 or more");
    maskring::detail::require(prefix.size == 0 || prefix.most < docs.documents,
                              "shared_prefix: the greatest prefix is ", prefix.most,
                              ", expected less than ", docs.documents);
  }

  constexpr bool operator()(int, int, int q, int kv) const {
    if (q < 0 || kv < 0 || q >= docs_.tokens || kv >= docs_.tokens) return false;
    const int id = docs_.ids[q], prefix = prefix_(id), other = docs_.ids[kv];
    return id == other ? q >= kv : other == prefix;
  }

  constexpr kleene operator()(range, range, range q, range kv) const {
    const std::uint8_t depends = detail::joint_depends(q, kv);
    const index_t end = docs_.tokens;
    detail::joined seen;
    if (q.lo < 0 || q.hi >= end || kv.lo < 0 || kv.hi >= end) { // tokens of no document
      seen.add(false);
      q = detail::clip(q, 0, end);
      kv = detail::clip(kv, 0, end);
      if (detail::is_empty(q) || detail::is_empty(kv)) return seen.result(depends);
    }
    for (int id = docs_.ids[q.lo]; id <= docs_.ids[q.hi] && !seen.mixed(); ++id) {
      const range part = detail::clip(q, docs_.starts[id], docs_.starts[id + 1]);
      if (!detail::is_empty(part)) add_document(seen, id, part, kv);
    }
    return seen.result(depends);
  }
  friend constexpr bool operator==(const shared_prefix&, const shared_prefix&) = default;

private:
  constexpr void add_document(detail::joined& seen, int id, range q, range kv) const {
    const int prefix = prefix_(id);
    const range own = detail::clip(kv, docs_.starts[id], docs_.starts[id + 1]);
    const range common = detail::clip(kv, docs_.starts[prefix], docs_.starts[prefix + 1]);
    const bool sees_own = !detail::is_empty(own);
    const bool sees_common = id != prefix && !detail::is_empty(common);
    if (sees_own) seen.add(q >= own);
    if (sees_common) seen.add(true);
    const index_t members = (sees_own ? size(own) : 0) + (sees_common ? size(common) : 0);
    if (members < size(kv)) seen.add(false); // keys of other documents
  }
  static constexpr index_t size(range r) { return r.is_point() ? 1 : (r.hi - r.lo) / r.step + 1; }

  document_view docs_;
  int_table_view prefix_;
};

} // namespace maskring::mask
