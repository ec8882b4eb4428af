// SPDX-License-Identifier: Apache-2.0
// The forward pass on the host.
#pragma once

#include <maskring/core/problem.hpp>
#include <maskring/core/softmax.hpp>
#include <maskring/cpu/detail/matmul.hpp>
#include <maskring/cpu/detail/parallel.hpp>
#include <maskring/cpu/detail/walk.hpp>

#include <cmath>

namespace maskring::cpu {

/// Softmax attention over the tiles that a block map names, one block of queries at a time, with
/// the online softmax. Everything is transposed, one query a lane: scores are K·Qᵀ, the output
/// Vᵀ·Pᵀ, so that keys and values are read as they lie and rows of scores are reduced without
/// shuffling. Method: T. Dao, "FlashAttention-2", 2023.
template <class T, class O, class Mask, class Score>
class forward_pass {
public:
  forward_pass(const problem& p, const inputs<T>& in, const results<O>& out, const Mask& mask,
               const block_map_view& map, const Score& score, isa level)
      : problem_{p}, in_{in}, out_{out}, mask_{mask}, map_{map}, score_{score}, level_{level} {}

  void run(int threads) {
    const index_t q_tiles = map_.q_tiles();
    detail::work_items items{problem_.batch * problem_.q_heads * q_tiles};
    const double operations = 2.0 * static_cast<double>(problem_.batch * problem_.q_heads) *
                              static_cast<double>(problem_.q_len) *
                              static_cast<double>(problem_.kv_len) *
                              static_cast<double>(problem_.qk_dim + problem_.v_dim);
    const int team = detail::useful_threads(threads, items.count(), operations);
    detail::run_workers(team, items, [&] {
      workspace work{problem_};
      for (index_t item; items.take(item);) {
        // Late rows first: under causal masks they have the most to do.
        const int tile = static_cast<int>(q_tiles - 1 - item % q_tiles);
        const index_t head = item / q_tiles;
        tile_row(work, head / problem_.q_heads, head % problem_.q_heads, tile);
      }
    });
  }

private:
  struct workspace {
    explicit workspace(const problem& p)
        : rows{detail::query_block * detail::padded(std::max(p.qk_dim, p.v_dim))},
          queries{p.qk_dim * detail::query_block},
          out{p.v_dim * detail::query_block},
          scores{detail::key_block * detail::query_block},
          keys{detail::key_block * detail::padded(p.qk_dim)},
          values{detail::key_block * detail::padded(p.v_dim)} {}
    detail::scratch rows, queries, out, scores, keys, values;
  };

  void tile_row(workspace& work, index_t b, index_t h, int tile) const {
    const index_t end = std::min(problem_.q_len, index_t{tile + 1} * map_.tile.q);
    for (index_t q = index_t{tile} * map_.tile.q; q < end; q += detail::query_block) {
      const int count = static_cast<int>(std::min<index_t>(detail::query_block, end - q));
      query_rows(work, b, h, tile, q, count);
    }
  }

  void query_rows(workspace& work, index_t b, index_t h, int tile, index_t q, int count) const {
    using namespace detail;
    const int lanes = padded_lanes(count);
    const index_t kv_head = h / problem_.group();
    dispatch(level_,
             transpose_kernel{broadcast_rows(level_, in_.q, b, h, q, count, work.rows.data()),
                              count, problem_.qk_dim, query_factor<Score>(problem_.scale),
                              work.queries.data()});
    running_rows state;
    start(state, work, b, h, q, count);
    const index_t row = map_.row(static_cast<int>(b), static_cast<int>(h), tile);
    for_each_key_block(map_, row, 0, map_.kv_tiles(), [&](index_t kv, int keys, bool partial) {
      const score_block at{static_cast<int>(b),
                           static_cast<int>(h),
                           static_cast<int>(q),
                           static_cast<int>(kv),
                           count,
                           keys};
      const verdict kept = block_verdict(mask_, partial, at);
      if (kept == verdict::none) return;
      const float_rows k = broadcast_rows(level_, in_.k, b, kv_head, kv, keys, work.keys.data());
      const float_rows v = broadcast_rows(level_, in_.v, b, kv_head, kv, keys, work.values.data());
      float* scores = work.scores.data();
      multiply<left::rows, false>(level_,
                                  {k.data, k.stride, work.queries.data(), query_block, scores,
                                   query_block, keys, lanes, static_cast<int>(problem_.qk_dim)});
      finish_scores(level_, scores, nullptr, mask_, kept == verdict::some, score_, at);
      dispatch(level_, softmax_kernel{scores, keys, lanes, state});
      multiply<left::columns, true>(level_,
                                    {v.data, v.stride, scores, query_block, state.out, query_block,
                                     static_cast<int>(problem_.v_dim), lanes, keys});
    });
    finish(state, b, h, q, count);
  }

  /// The empty state, or the carried one.
  void start(detail::running_rows& state, workspace& work, index_t b, index_t h, index_t q,
             int count) const {
    using namespace detail;
    state.out = work.out.data();
    state.v_dim = problem_.v_dim;
    std::fill_n(state.maximum, query_block, -infinity);
    std::fill_n(state.sum, query_block, 0.0f);
    const carried& previous = in_.previous;
    if (!previous.out) {
      std::fill_n(state.out, problem_.v_dim * query_block, 0.0f);
      return;
    }
    const float_rows out = broadcast_rows(level_, previous.out, b, h, q, count, nullptr);
    dispatch(level_, transpose_kernel{out, count, problem_.v_dim, 1.0f, state.out});
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

  void finish(const detail::running_rows& state, index_t b, index_t h, index_t q, int count) const {
    using namespace detail;
    for (int l = 0; l < count; ++l) {
      // In double precision: once a row, and a rounding of lse is one of all weights in backward.
      const softmax_state<double> seen{static_cast<double>(state.maximum[l]) / log2_e_double,
                                       static_cast<double>(state.sum[l])};
      const auto whole =
          in_.sink ? merge(seen, softmax_state<double>::from_lse(static_cast<double>(in_.sink(h))))
                   : seen;
      O* out = &out_.out(b, h, q + l, 0);
      if (seen.empty()) {
        std::fill_n(out, problem_.v_dim, O(0.0f));
      } else {
        const auto factor =
            static_cast<float>(rescale_factor(seen.maximum, whole.maximum) / whole.sum);
        for (index_t d = 0; d < problem_.v_dim; ++d) {
          out[d] = static_cast<O>(state.out[d * query_block + l] * factor);
        }
      }
      if (out_.lse) out_.lse(b, h, q + l) = static_cast<float>(whole.lse());
    }
  }

  problem problem_;
  inputs<T> in_;
  results<O> out_;
  Mask mask_;
  block_map_view map_;
  Score score_;
  isa level_;
};

} // namespace maskring::cpu
