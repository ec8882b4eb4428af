// SPDX-License-Identifier: Apache-2.0
// The backward pass on the host.
#pragma once

#include <maskring/block/descent.hpp>
#include <maskring/core/problem.hpp>
#include <maskring/cpu/detail/gradients.hpp>
#include <maskring/cpu/detail/learn.hpp>
#include <maskring/cpu/detail/matmul.hpp>
#include <maskring/cpu/detail/parallel.hpp>
#include <maskring/cpu/detail/turns.hpp>
#include <maskring/cpu/detail/walk.hpp>

namespace maskring::cpu {

/// The gradients of q, k, v (and sink logits). The weights p = exp(s − lse) are computed again from
/// the saved log-sum-exp; with delta = Σ dout·out − dlse,
///   dv = pᵀ·dout,  ds = p∘(dout·vᵀ − delta)·score′·scale,  dq = ds·k,  dk = dsᵀ·q.
///
/// A score modifier that learns is handed p∘(dout·vᵀ − delta), the gradient of its results.
///
/// A worker owns a span of keys: their dk and dv stay with it while it passes the queries, and it
/// adds to dq when its turn comes, in ascending order of keys. So each product is computed once,
/// and each sum has one order, whatever the number of threads. Method: T. Dao, "FlashAttention-2",
/// 2023.
template <class T, class O, class D, class G, class Mask, class Score>
class backward_pass {
public:
  backward_pass(const problem& p, const saved<T, O>& in, const upstream<D>& up,
                const gradients<G>& grad, bool accumulate, const Mask& mask,
                const block_map_view& map, const Score& score, isa level)
      : problem_{p},
        in_{in},
        up_{up},
        grad_{grad},
        accumulate_{accumulate},
        mask_{mask},
        map_{map},
        score_{score},
        level_{level},
        span_tiles_{std::max(1, span_keys / map.tile.kv)},
        row_terms_{in, up, p},
        dq_{grad.dq, accumulate},
        turns_{map, p, span_tiles_} {}

  void run(int threads) {
    row_terms_.compute(threads);
    dq_.clear(threads);
    const int spans = (map_.kv_tiles() + span_tiles_ - 1) / span_tiles_;
    const index_t heads = problem_.batch * problem_.kv_heads;
    detail::work_items items{heads * spans};
    const int team = detail::useful_threads(threads, items.count(), operations());
    detail::run_workers(team, items, [&] {
      workspace work{problem_,
                     std::min<index_t>(problem_.kv_len, index_t{span_tiles_} * map_.tile.kv)};
      for (index_t item; items.take(item);) {
        // All heads' first spans first: their turns then come without waiting.
        const index_t head = item % heads;
        key_span(work, items, head / problem_.kv_heads, head % problem_.kv_heads,
                 static_cast<int>(item / heads));
      }
    });
    dq_.store(threads);
    if (grad_.dsink) row_terms_.sink_gradient(grad_.dsink, accumulate_);
  }

private:
  /// Keys that a worker owns at a time: enough to pay for passing all queries, few enough for its
  /// caches.
  static constexpr int span_keys = 256;

  struct workspace {
    workspace(const problem& p, index_t span)
        : keys{span * detail::padded(p.qk_dim)},
          values{span * detail::padded(p.v_dim)},
          dk{span, p.qk_dim},
          dv{span, p.v_dim},
          queries{detail::query_block * detail::padded(p.qk_dim)},
          douts{detail::query_block * detail::padded(p.v_dim)},
          queries_t{detail::query_block * p.qk_dim},
          douts_t{detail::query_block * p.v_dim},
          scores{detail::query_block * detail::key_block},
          slopes{detail::query_block * detail::key_block},
          derivatives{detail::query_block * detail::key_block},
          given{learnable_score<Score> ? detail::query_block * detail::key_block : 0} {}
    detail::scratch keys, values;
    detail::key_gradient dk, dv;
    detail::scratch queries, douts, queries_t, douts_t;
    detail::scratch scores, slopes, derivatives, given;
  };

  struct span {
    index_t b, kv_head, key, keys;
    int first_tile, end_tile;
    detail::float_rows k, v;
  };

  double operations() const {
    return 2.5 * static_cast<double>(problem_.batch * problem_.q_heads) *
           static_cast<double>(problem_.q_len) * static_cast<double>(problem_.kv_len) *
           static_cast<double>(problem_.qk_dim + problem_.v_dim);
  }

  void key_span(workspace& work, const detail::work_items& items, index_t b, index_t kv_head,
                int index) {
    span s{};
    s.b = b;
    s.kv_head = kv_head;
    s.first_tile = index * span_tiles_;
    s.end_tile = std::min(map_.kv_tiles(), s.first_tile + span_tiles_);
    s.key = index_t{s.first_tile} * map_.tile.kv;
    s.keys = std::min(problem_.kv_len, index_t{s.end_tile} * map_.tile.kv) - s.key;
    s.k = detail::vector_rows(level_, in_.k, b, kv_head, s.key, s.keys, work.keys.data());
    s.v = detail::broadcast_rows(level_, in_.v, b, kv_head, s.key, s.keys, work.values.data());
    work.dk.clear(s.keys);
    work.dv.clear(s.keys);
    for (index_t h = kv_head * problem_.group(); h < (kv_head + 1) * problem_.group(); ++h) {
      const auto [first, end] = detail::query_tiles(map_, b, h, s.first_tile, s.end_tile);
      // Downwards: the next span of a window then begins where this one has nothing to add.
      for (int i = end - 1; i >= first; --i) {
        if (!turns_.takes_part(b, h, i, index)) continue;
        if (!turns_.wait(b, h, i, index, items)) return;
        query_tile(work, s, h, i);
        turns_.pass_on(b, h, i, index);
      }
    }
    detail::store_rows(grad_.dk, b, kv_head, s.key, s.keys, work.dk.sum(), accumulate_);
    detail::store_rows(grad_.dv, b, kv_head, s.key, s.keys, work.dv.sum(), accumulate_);
  }

  void query_tile(workspace& work, const span& s, index_t h, int tile) {
    using namespace detail;
    const int qk_dim = static_cast<int>(problem_.qk_dim), v_dim = static_cast<int>(problem_.v_dim);
    const range rows_here =
        maskring::detail::tile_span(tile, tile + 1, map_.tile.q, problem_.q_len, map_.q_lead());
    const index_t end = rows_here.hi + 1;
    for (index_t q = rows_here.lo; q < end; q += query_block) {
      const int count = static_cast<int>(std::min<index_t>(query_block, end - q));
      const int lanes = padded_lanes(count);
      const float_rows rows = vector_rows(level_, in_.q, s.b, h, q, count, work.queries.data());
      const float_rows douts = vector_rows(level_, up_.dout, s.b, h, q, count, work.douts.data());
      dispatch(level_, transpose_kernel{rows, count, qk_dim, query_factor<Score>(problem_.scale),
                                        work.queries_t.data()});
      dispatch(level_, transpose_kernel{douts, count, v_dim, 1.0f, work.douts_t.data()});
      float lse[query_block], delta[query_block];
      row_terms_.load(s.b, h, q, count, lse, delta);

      const index_t row = map_.row(static_cast<int>(s.b), static_cast<int>(h), tile);
      for_each_key_block(
          map_, row, s.first_tile, s.end_tile, [&](index_t kv, int keys, bool partial) {
            const score_block at{static_cast<int>(s.b),
                                 static_cast<int>(h),
                                 static_cast<int>(q),
                                 static_cast<int>(kv),
                                 count,
                                 keys};
            const verdict kept = block_verdict(mask_, partial, at);
            if (kept == verdict::none) return;
            const float* k = s.k.row(kv - s.key);
            const float* v = s.v.row(kv - s.key);
            float* scores = work.scores.data();
            float* slopes = work.slopes.data();
            float* derivatives = modifies_scores<Score> ? work.derivatives.data() : nullptr;
            multiply<left::rows, into::fresh>(level_,
                                              {k, s.k.stride, work.queries_t.data(), query_block,
                                               scores, query_block, keys, lanes, qk_dim});
            multiply<left::rows, into::fresh>(level_,
                                              {v, s.v.stride, work.douts_t.data(), query_block,
                                               slopes, query_block, keys, lanes, v_dim});
            if constexpr (learnable_score<Score>) {
              std::copy_n(scores, keys * query_block, work.given.data());
            }
            finish_scores(level_, scores, derivatives, mask_, kept == verdict::some, score_, at);
            if constexpr (learnable_score<Score>) {
              add_score_gradients(score_, {work.given.data(), scores, slopes, lse, delta}, at);
            }
            float largest;
            dispatch(level_, softmax_gradient_kernel{scores, slopes, derivatives, lse, delta,
                                                     problem_.scale, keys, lanes, largest});
            work.dv.add(level_, scores, douts, kv - s.key, keys, count, largest);
            work.dk.add(level_, slopes, rows, kv - s.key, keys, count, largest);
            multiply<left::columns, into::sum>(level_, {slopes, query_block, k, s.k.stride,
                                                        dq_.row(s.b, h, q), dq_.stride(), count,
                                                        static_cast<int>(padded(qk_dim)), keys});
          });
    }
  }

  problem problem_;
  saved<T, O> in_;
  upstream<D> up_;
  gradients<G> grad_;
  bool accumulate_;
  Mask mask_;
  block_map_view map_;
  Score score_;
  isa level_;
  int span_tiles_;
  detail::row_terms<T, O, D> row_terms_;
  detail::query_gradient<G> dq_;
  detail::turns turns_;
};

} // namespace maskring::cpu
