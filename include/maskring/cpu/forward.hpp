// SPDX-License-Identifier: Apache-2.0
// The forward pass on the host.
#pragma once

#include <maskring/block/descent.hpp>
#include <maskring/core/problem.hpp>
#include <maskring/core/softmax.hpp>
#include <maskring/cpu/detail/matmul.hpp>
#include <maskring/cpu/detail/parallel.hpp>
#include <maskring/cpu/detail/walk.hpp>

#include <cmath>
#include <span>
#include <vector>

namespace maskring::cpu {

/// Softmax attention over the tiles that a block map names, one block of queries at a time, with
/// the online softmax. Everything is transposed, one query a lane: scores are K·Qᵀ, the output
/// Vᵀ·Pᵀ, so that keys and values are read as they lie and rows of scores are reduced without
/// shuffling. Method: T. Dao, "FlashAttention-2", 2023.
template <class T, class O, class Mask, class Score>
class forward_pass {
public:
  forward_pass(const problem& p, const inputs<T>& in, const results<O>& out, const Mask& mask,
               const block_map_view& map, const Score& score, isa level, const open_rows& open)
      : problem_{p},
        in_{in},
        out_{out},
        mask_{mask},
        map_{map},
        score_{score},
        level_{level},
        open_{open} {}

  void run(int threads) {
    const index_t q_tiles = map_.q_tiles();
    detail::work_items items{problem_.batch * problem_.q_heads * q_tiles};
    const double operations = 2.0 * static_cast<double>(problem_.batch * problem_.q_heads) *
                              static_cast<double>(problem_.q_len) *
                              static_cast<double>(problem_.kv_len) *
                              static_cast<double>(problem_.qk_dim + problem_.v_dim);
    const int team = detail::useful_threads(threads, items.count(), operations);
    detail::run_workers(team, items, [&] {
      workspace work{problem_, map_.tile};
      for (index_t item; items.take(item);) {
        // Late rows first: under causal masks they have the most to do.
        const int tile = static_cast<int>(q_tiles - 1 - item % q_tiles);
        const index_t head = item / q_tiles;
        tile_row(work, head / problem_.q_heads, head % problem_.q_heads, tile);
      }
    });
  }

private:
  /// One block of queries and what is known of its rows.
  struct query_rows {
    index_t first = 0;
    int count = 0;
    detail::scratch queries, out; ///< transposed
    detail::running_rows state{};
  };

  /// Blocks of queries of one tile that pass each block of keys together, while it is in the
  /// caches.
  static constexpr int most_together = 4;

  struct workspace {
    workspace(const problem& p, const tile_shape& tile)
        : rows{detail::query_block * detail::padded(std::max(p.qk_dim, p.v_dim))},
          scores{detail::key_block * detail::query_block},
          keys{detail::key_block * detail::padded(p.qk_dim)},
          values{detail::key_block * detail::padded(p.v_dim)},
          blocks(static_cast<std::size_t>(
              std::min(most_together, (tile.q - 1) / detail::query_block + 1))) {
      for (query_rows& block : blocks) {
        block.queries = detail::scratch{p.qk_dim * detail::query_block};
        block.out = detail::scratch{p.v_dim * detail::query_block};
      }
    }
    detail::scratch rows, scores, keys, values;
    std::vector<query_rows> blocks;
  };

  void tile_row(workspace& work, index_t b, index_t h, int tile) const {
    const range rows_here =
        maskring::detail::tile_span(tile, tile + 1, map_.tile.q, problem_.q_len, map_.q_lead());
    const index_t end = rows_here.hi + 1;
    for (index_t q = rows_here.lo; q < end;) {
      std::size_t together = 0;
      for (; q < end && together < work.blocks.size(); q += detail::query_block) {
        query_rows& block = work.blocks[together++];
        block.first = q;
        block.count = static_cast<int>(std::min<index_t>(detail::query_block, end - q));
        start(work, block, b, h);
      }
      const std::span blocks{work.blocks.data(), together};
      pass_keys(work, blocks, b, h, tile);
      for (const query_rows& block : blocks) finish(block, b, h);
    }
  }

  void pass_keys(workspace& work, std::span<query_rows> blocks, index_t b, index_t h,
                 int tile) const {
    using namespace detail;
    const index_t kv_head = h / problem_.group();
    const index_t row = map_.row(static_cast<int>(b), static_cast<int>(h), tile);
    for_each_key_block(map_, row, 0, map_.kv_tiles(), [&](index_t kv, int keys, bool partial) {
      const float_rows k = broadcast_rows(level_, in_.k, b, kv_head, kv, keys, work.keys.data());
      const float_rows v = broadcast_rows(level_, in_.v, b, kv_head, kv, keys, work.values.data());
      for (query_rows& block : blocks) {
        const score_block at{
            static_cast<int>(b),  static_cast<int>(h), static_cast<int>(block.first),
            static_cast<int>(kv), block.count,         keys};
        const verdict kept = block_verdict(mask_, partial, at);
        if (kept == verdict::none) continue;
        const int lanes = padded_lanes(block.count);
        float* scores = work.scores.data();
        multiply<left::rows, into::fresh>(level_, {k.data, k.stride, block.queries.data(),
                                                   query_block, scores, query_block, keys, lanes,
                                                   static_cast<int>(problem_.qk_dim)});
        finish_scores(level_, scores, nullptr, mask_, kept == verdict::some, score_, at);
        dispatch(level_, softmax_kernel{scores, keys, lanes, block.state});
        multiply<left::columns, into::sum>(level_, {v.data, v.stride, scores, query_block,
                                                    block.state.out, query_block,
                                                    static_cast<int>(problem_.v_dim), lanes, keys});
      }
    });
  }

  /// The queries, scaled, and the empty state or the carried one.
  void start(workspace& work, query_rows& block, index_t b, index_t h) const {
    using namespace detail;
    const index_t q = block.first;
    const int count = block.count;
    const float_rows rows = broadcast_rows(level_, in_.q, b, h, q, count, work.rows.data());
    dispatch(level_, transpose_kernel{rows, count, problem_.qk_dim,
                                      query_factor<Score>(problem_.scale), block.queries.data()});
    running_rows& state = block.state;
    state.out = block.out.data();
    state.v_dim = problem_.v_dim;
    std::fill_n(state.maximum, query_block, -infinity);
    std::fill_n(state.sum, query_block, 0.0f);
    const carried& previous = in_.previous;
    if (!previous.out) {
      std::fill_n(state.out, problem_.v_dim * query_block, 0.0f);
      return;
    }
    const float_rows out = broadcast_rows(level_, previous.out, b, h, q, count, work.rows.data());
    dispatch(level_, transpose_kernel{out, count, problem_.v_dim, 1.0f, state.out});
    if (open_.before) {
      for (int l = 0; l < count; ++l) {
        state.maximum[l] = previous.lse(b, h, q + l);
        state.sum[l] = open_.sum(b, h, q + l);
      }
      return;
    }
    float weight[query_block] = {};
    for (int l = 0; l < count; ++l) {
      const float lse = previous.lse(b, h, q + l);
      state.maximum[l] = -infinity;
      state.sum[l] = 0;
      if (lse == -infinity) continue;
      // What the maximum loses by rounding goes to the sum, so that carrying a state many times
      // does not add up.
      const double base_2 = static_cast<double>(lse) * log2_e_double;
      state.maximum[l] = static_cast<float>(base_2);
      weight[l] = static_cast<float>(std::exp2(base_2 - static_cast<double>(state.maximum[l])));
      state.sum[l] = weight[l];
    }
    for (index_t d = 0; d < problem_.v_dim; ++d) {
      for (int l = 0; l < query_block; ++l) state.out[d * query_block + l] *= weight[l];
    }
  }

  void finish(const query_rows& block, index_t b, index_t h) const {
    using namespace detail;
    const running_rows& state = block.state;
    for (int l = 0; l < block.count; ++l) {
      const index_t q = block.first + l;
      O* out = &out_.out(b, h, q, 0);
      if (open_.after) {
        for (index_t d = 0; d < problem_.v_dim; ++d) {
          out[d] = static_cast<O>(state.out[d * query_block + l]);
        }
        out_.lse(b, h, q) = state.maximum[l];
        open_.sum(b, h, q) = state.sum[l];
        continue;
      }
      // In double precision: once a row, and a rounding of lse is one of all weights in backward.
      const softmax_state<double> seen{static_cast<double>(state.maximum[l]) / log2_e_double,
                                       static_cast<double>(state.sum[l])};
      const auto whole =
          in_.sink ? merge(seen, softmax_state<double>::from_lse(static_cast<double>(in_.sink(h))))
                   : seen;
      if (seen.empty()) {
        std::fill_n(out, problem_.v_dim, O(0.0f));
      } else {
        const auto factor =
            static_cast<float>(rescale_factor(seen.maximum, whole.maximum) / whole.sum);
        for (index_t d = 0; d < problem_.v_dim; ++d) {
          out[d] = static_cast<O>(state.out[d * query_block + l] * factor);
        }
      }
      if (out_.lse) out_.lse(b, h, q) = static_cast<float>(whole.lse());
    }
  }

  problem problem_;
  inputs<T> in_;
  results<O> out_;
  Mask mask_;
  block_map_view map_;
  Score score_;
  isa level_;
  open_rows open_;
};

} // namespace maskring::cpu
