// SPDX-License-Identifier: Apache-2.0
// Which heads each rank computes, and masks and score modifiers on some of the heads.
#pragma once

#include <maskring/cp/shape.hpp>
#include <maskring/mask/concepts.hpp>
#include <maskring/score/concepts.hpp>

namespace maskring::cp::detail {

/// mask(b, h + first, q, kv).
template <mask_mod Mask>
struct mask_of_heads {
  static constexpr bool needs_elements = maskring::needs_elements<Mask>;
  Mask mask;
  int first = 0;

  constexpr bool operator()(int batch, int head, int q, int kv) const {
    return static_cast<bool>(mask(batch, head + first, q, kv));
  }
  constexpr kleene operator()(range batch, range head, range q, range kv) const {
    return ask(mask, batch, head + first, q, kv);
  }
  friend constexpr bool operator==(const mask_of_heads&, const mask_of_heads&) = default;
};

/// score(s, b, h + first, q, kv).
template <score_mod Score>
struct score_of_heads {
  Score score;
  int first = 0;

  constexpr auto operator()(auto s, int batch, int head, int q, int kv) const {
    return score(s, batch, head + first, q, kv);
  }
  template <class T>
  constexpr void add_gradient(T dscore, T s, int batch, int head, int q,
                              int kv) const requires learnable_score<Score> {
    score.add_gradient(dscore, s, batch, head + first, q, kv);
  }
  friend constexpr bool operator==(const score_of_heads&, const score_of_heads&) = default;
};

template <mask_mod Mask>
constexpr mask_of_heads<Mask> of_heads(const Mask& mask, int first) {
  return {mask, first};
}
template <score_mod Score>
constexpr score_of_heads<Score> of_heads(const Score& score, int first) {
  return {score, first};
}
constexpr score::none of_heads(score::none, int) { return {}; }

/// Query heads in equal parts, one a rank, with the key heads that they read. Where there are more
/// ranks than key heads, several ranks have the same one.
class head_split {
public:
  /// @throws std::invalid_argument if q_heads is no multiple of the ranks, or kv_heads neither a
  ///         multiple nor a divisor of them.
  head_split(const char* call, const shape& sizes, int ranks) : sizes_{sizes}, ranks_{ranks} {
    maskring::detail::require(sizes.q_heads % ranks == 0, call, ": q_heads is ", sizes.q_heads,
                              ", expected a multiple of the ", ranks,
                              " ranks that share the heads");
    maskring::detail::require(
        sizes.kv_heads % ranks == 0 || (sizes.kv_heads > 0 && ranks % sizes.kv_heads == 0), call,
        ": kv_heads is ", sizes.kv_heads, ", expected a multiple or a divisor of the ", ranks,
        " ranks that share the heads");
  }

  int ranks() const { return ranks_; }
  bool replicated() const { return sizes_.kv_heads % ranks_ != 0; }
  interval queries(int rank) const {
    const index_t n = sizes_.q_heads / ranks_;
    return {rank * n, (rank + 1) * n};
  }
  interval keys(int rank) const {
    if (!replicated()) {
      const index_t n = sizes_.kv_heads / ranks_;
      return {rank * n, (rank + 1) * n};
    }
    const index_t head = rank / (ranks_ / sizes_.kv_heads);
    return {head, head + 1};
  }
  /// The sizes of what one rank computes.
  shape part() const {
    shape out = sizes_;
    out.q_heads = queries(0).size();
    out.kv_heads = keys(0).size();
    return out;
  }

private:
  shape sizes_;
  int ranks_;
};

} // namespace maskring::cp::detail
