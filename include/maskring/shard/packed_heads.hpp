// SPDX-License-Identifier: Apache-2.0
// The grouped-query rewrite: heads that share keys become rows of one head.
#pragma once

#include <maskring/core/problem.hpp>
#include <maskring/mask/concepts.hpp>
#include <maskring/score/concepts.hpp>

#include <optional>

namespace maskring::shard {

/// Which query head and query a row of a key head's packed queries is: row = outer·inner_count +
/// inner, where one of the two counts the group's heads and the other the queries.
struct packed_rows {
  int group = 1; ///< query heads to a key head
  int inner_count = 1;
  bool heads_outer = false; ///< row = head·q_len + query, else row = query·group + head

  constexpr int head(int kv_head, int row) const {
    return kv_head * group + (heads_outer ? row / inner_count : row % inner_count);
  }
  constexpr int query(int row) const { return heads_outer ? row % inner_count : row / inner_count; }

  struct place {
    range head, query;
  };

  /// The smallest rectangle of heads and queries that holds the rows.
  constexpr place operator()(range kv_head, range rows) const {
    // 32 bits suffice for rows, and device code divides 64 slowly.
    const int first = static_cast<int>(rows.lo), last = static_cast<int>(rows.hi);
    const range outer{first / inner_count, last / inner_count, 1, rows.depends};
    const range inner =
        outer.is_point() ? range{first % inner_count, last % inner_count, rows.step, rows.depends}
                         : range{0, inner_count - 1, 1, rows.depends};
    return {kv_head * range{group} + (heads_outer ? outer : inner), heads_outer ? inner : outer};
  }

  friend constexpr bool operator==(packed_rows, packed_rows) = default;
};

/// mask(b, head, query, kv) of packed rows.
///
/// Over ranges it asks about the rectangle that holds the rows: exact, if the mask is, within one
/// outer index and over whole ones, and also where the mask does not look at heads and every query
/// is among the rows.
template <mask_mod Mask>
struct packed_mask {
  static constexpr bool needs_elements = maskring::needs_elements<Mask>;
  Mask mask;
  packed_rows rows;

  constexpr bool operator()(int batch, int kv_head, int row, int kv) const {
    return static_cast<bool>(mask(batch, rows.head(kv_head, row), rows.query(row), kv));
  }

  constexpr kleene operator()(range batch, range kv_head, range row, range kv) const {
    const packed_rows::place at = rows(kv_head, row);
    return ask(mask, batch, at.head, at.query, kv);
  }
};

/// score(s, b, head, query, kv) of packed rows.
template <score_mod Score>
struct packed_score {
  Score score;
  packed_rows rows;

  constexpr auto operator()(auto s, int batch, int kv_head, int row, int kv) const {
    return score(s, batch, rows.head(kv_head, row), rows.query(row), kv);
  }
};

template <score_mod Score>
constexpr packed_score<Score> pack(const Score& score, const packed_rows& rows) {
  return {score, rows};
}

/// The modifier that changes nothing stays itself, so that kernels still leave it out.
constexpr score::none pack(score::none, const packed_rows&) { return {}; }

/// The query head of a row, for what kernels look up by head: a row past the end counts as the last
/// head's. Rows of a mask that is not packed belong to the head itself.
template <class Mask>
constexpr int query_head(const Mask&, int head, int) {
  return head;
}
template <class Mask>
constexpr int query_head(const packed_mask<Mask>& mask, int kv_head, int row) {
  return min(mask.rows.head(kv_head, row), (kv_head + 1) * mask.rows.group - 1);
}

namespace detail {

/// Whether one stride leads from row to row; also of tensors that are not there.
template <class T, int Rank>
constexpr bool packs(const view<T, Rank>& tensor, const packed_rows& rows) {
  if (!tensor || tensor.extent(2) == 1) return true;
  return rows.heads_outer ? tensor.stride(1) == tensor.extent(2) * tensor.stride(2)
                          : tensor.stride(2) == rows.group * tensor.stride(1);
}

template <class T, int Rank>
constexpr view<T, Rank> pack(view<T, Rank> tensor, const packed_rows& rows) {
  const index_t head_stride = tensor.strides[1];
  tensor.extents[1] /= rows.group;
  tensor.extents[2] *= rows.group;
  tensor.strides[1] *= rows.group;
  if (!rows.heads_outer) tensor.strides[2] = head_stride;
  return tensor;
}

} // namespace detail

/// The order of rows in which each tensor of a forward call with grouped heads has one stride from
/// row to row, if there is one.
template <class T, class O>
std::optional<packed_rows> packable(const inputs<T>& in, const results<O>& out, const problem& p) {
  const int group = static_cast<int>(p.group());
  // With one query both orders are the same; the second needs no stride of queries.
  for (const packed_rows rows :
       {packed_rows{group, group, false}, packed_rows{group, static_cast<int>(p.q_len), true}}) {
    const auto packs = [&](const auto& tensor) { return detail::packs(tensor, rows); };
    if (packs(in.q) && packs(out.out) && packs(out.lse) && packs(in.previous.out) &&
        packs(in.previous.lse)) {
      return rows;
    }
  }
  return std::nullopt;
}

/// The same call with queries and results packed. A sink is still looked up by query_head().
template <class T>
constexpr inputs<T> pack(inputs<T> in, const packed_rows& rows) {
  in.q = detail::pack(in.q, rows);
  in.previous = {detail::pack(in.previous.out, rows), detail::pack(in.previous.lse, rows)};
  return in;
}

template <class O>
constexpr results<O> pack(results<O> out, const packed_rows& rows) {
  out.out = detail::pack(out.out, rows);
  out.lse = detail::pack(out.lse, rows);
  return out;
}

constexpr problem pack(problem p, const packed_rows& rows) {
  p.q_heads = p.kv_heads;
  p.q_len *= rows.group;
  return p;
}

} // namespace maskring::shard
