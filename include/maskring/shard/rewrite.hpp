// SPDX-License-Identifier: Apache-2.0
// The context-parallel rewrite: a mask or score modifier on global indices, made one on local ones.
#pragma once

#include <maskring/mask/concepts.hpp>
#include <maskring/score/concepts.hpp>
#include <maskring/shard/layout.hpp>

namespace maskring::shard {

/// mask(b, h, q_map(q), kv_map(kv)): what a rank sees of the mask in its own numbering.
///
/// Over ranges it is exact if the mask is: a range that crosses the seam of a layout is asked about
/// piece by piece. For the contiguous layout with gathered keys this is "query index + rank × shard
/// size", the rewrite of PyTorch's context-parallel FlexAttention.
template <mask_mod Mask, index_map QMap, index_map KvMap>
struct rewritten_mask {
  static constexpr bool needs_elements = maskring::needs_elements<Mask>;
  Mask mask;
  QMap q_map;
  KvMap kv_map;

  constexpr bool operator()(int batch, int head, int q, int kv) const {
    return static_cast<bool>(mask(batch, head, q_map(q), kv_map(kv)));
  }

  constexpr kleene operator()(range batch, range head, range q, range kv) const {
    const image queries = q_map(q), keys = kv_map(kv);
    kleene all = true, any = false;
    // Bounds that compilers know keep the images in registers.
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        if (i >= queries.count || j >= keys.count) continue;
        const kleene here = ask(mask, batch, head, queries.pieces[i], keys.pieces[j]);
        all = all & here;
        any = any | here;
      }
    }
    const bool mixed = all.value() != any.value();
    return {mixed ? verdict::some : all.value(), any.depends()};
  }

  friend bool operator==(const rewritten_mask&, const rewritten_mask&) = default;
};

/// score(s, b, h, q_map(q), kv_map(kv)): score modifiers see global indices on every rank.
template <score_mod Score, index_map QMap, index_map KvMap>
struct rewritten_score {
  Score score;
  QMap q_map;
  KvMap kv_map;

  constexpr auto operator()(auto s, int batch, int head, int q, int kv) const {
    return score(s, batch, head, q_map(q), kv_map(kv));
  }

  constexpr auto at(int batch, int head) const {
    return rewritten_score<decltype(score_at(score, batch, head)), QMap, KvMap>{
        score_at(score, batch, head), q_map, kv_map};
  }

  /// What learns sees global indices too; the ranks' gradients add up to the whole.
  template <class T>
  constexpr void add_gradient(T dscore, T s, int batch, int head, int q,
                              int kv) const requires learnable_score<Score> {
    score.add_gradient(dscore, s, batch, head, q_map(q), kv_map(kv));
  }

  friend bool operator==(const rewritten_score&, const rewritten_score&) = default;
};

template <mask_mod Mask, index_map QMap, index_map KvMap>
constexpr rewritten_mask<Mask, QMap, KvMap> rewrite(Mask mask, QMap q_map, KvMap kv_map) {
  return {mask, q_map, kv_map};
}

template <score_mod Score, index_map QMap, index_map KvMap>
constexpr rewritten_score<Score, QMap, KvMap> rewrite(Score score, QMap q_map, KvMap kv_map) {
  return {score, q_map, kv_map};
}

/// The modifier that changes nothing stays itself, so that kernels still leave it out.
template <index_map QMap, index_map KvMap>
constexpr score::none rewrite(score::none, QMap, KvMap) {
  return {};
}

} // namespace maskring::shard
