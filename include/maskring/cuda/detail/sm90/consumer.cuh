// SPDX-License-Identifier: Apache-2.0
// The Hopper forward kernel's consumer warpgroups: the two products and the softmax between them.
#pragma once

#include <maskring/cuda/detail/ptx/named_barrier.cuh>
#include <maskring/cuda/detail/ptx/tensor_map.cuh>
#include <maskring/cuda/detail/ptx/wgmma.cuh>
#include <maskring/cuda/detail/sm90/arguments.cuh>
#include <maskring/cuda/detail/sm90/epilogue.cuh>
#include <maskring/cuda/detail/sm90/mask_blocks.cuh>
#include <maskring/cuda/detail/softmax.cuh>

#include <utility>

namespace maskring::cuda::detail::sm90 {

/// One warpgroup's share of the block: 64 query rows.
///
/// It has the next tile's scores and this tile's product with V formed together, and exponentiates
/// once it has the scores, or both. With ping-pong the other groups' products fill what that
/// leaves.
template <class Arguments>
class consumer {
  static constexpr forward_policy P = Arguments::policy;
  static constexpr int score_count = P.tile.kv / 2;
  using weights = std::uint32_t[P.tile.kv / 4]; ///< rounded, in pairs
  /// With two, a tile's weights need not wait for the product of those before.
  static constexpr int weight_sets = P.overlap ? 2 : 1;
  static constexpr bool products_finish_together = !P.overlap && P.early_weights == 0;
  using T = typename Arguments::input_type;
  using storage = forward_storage<P>;
  using item_score = decltype(score_at(std::declval<const Arguments&>().score, 0, 0));

public:
  __device__ consumer(const Arguments& args, storage& smem, int group)
      : args_{args},
        smem_{smem},
        group_{group},
        lane_{static_cast<int>(threadIdx.x) % 32},
        strip_{4 * group + __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32 % 4, 0)} {}

  /// All items of the block, as one stream of tiles: an item's last product with V and its way to
  /// memory overlap with the next item's first scores.
  __device__ void run() {
    float s[score_count];
    weights p[weight_sets];
    float out[P.v_dim / 2];
    optimistic_softmax<T> rows;

    work_item item = next_item();
    if (!item.valid()) return;
    if (P.ping_pong && group_ == P.consumers() - 1) give_turn();
    begin(item, out, rows);
    wait_queries();
    wait_keys();
    multiply_keys(s);
    ptx::wgmma_wait<0>(s);
    for (;;) {
      const item_score score = score_at(args_.score, item.batch, item.head);
      tile_note note = take_note();
      release_scored(note);
      float factor[2];
      // Only what earlier calls left can be there to be rescaled.
      if (exponentiate<true>(s, item, score, note, rows, p[0], factor, [] {}) &&
          Arguments::carries) {
        scale_rows(out, factor);
      }
      finish_copy();
      if (!note.last()) wait_keys();
      while (!note.last()) {
        note = step(s, p[0], p[weight_sets - 1], out, item, score, rows);
        if constexpr (weight_sets == 2) {
          if (note.last()) {
#pragma unroll
            for (int i = 0; i < P.tile.kv / 4; ++i) p[0][i] = p[1][i];
            ptx::pin(p[0]); // here, not between the products that follow
            break;
          }
          note = step(s, p[1], p[0], out, item, score, rows);
        }
      }
      q_cursor_.advance();

      const work_item next = next_item();
      if (!next.valid()) break;
      await_turn();
      wait_values();
      multiply_values(p[0], out);
      wait_queries();
      wait_keys();
      multiply_keys(s);
      give_turn();
      ptx::wgmma_wait<1>(out, p[0]);
      release(smem_.v_slots[v_cursor().stage()]);
      store(item, out, rows);
      item = next;
      begin(item, out, rows);
      ptx::wgmma_wait<0>(s);
    }
    wait_values();
    multiply_values(p[0], out);
    ptx::wgmma_wait<0>(out, p[0]);
    store(item, out, rows);
    finish_copy();
    if (P.ping_pong && group_ == 0) await_turn(); // leaves no barrier half full
  }

private:
  /// The next tile's scores, softmax and weights `next`, around this tile's product of weights `p`
  /// with V; the keys are there.
  __device__ tile_note step(float (&s)[score_count], weights& p, weights& next,
                            float (&out)[P.v_dim / 2], const work_item& item,
                            const item_score& score, optimistic_softmax<T>& rows) {
    await_turn();
    multiply_keys(s);
    wait_values();
    multiply_values(p, out, [this] { give_turn(); });
    // Asked here, where the answers may take their time.
    const tile_note note = take_note();
    const bool arrived = next_keys_arrived();
    if constexpr (products_finish_together) {
      ptx::wgmma_wait<0>(s, out, p);
      release(smem_.v_slots[v_cursor().stage()]);
    } else {
      ptx::wgmma_wait<1>(s);
    }
    release_scored(note);
    const auto finish_product = [&] {
      // ptxas would move the wait up, were there no branch ahead of it.
      if (!arrived && !note.last()) wait_keys();
      if constexpr (!products_finish_together) {
        ptx::wgmma_wait<0>(out, p);
        release(smem_.v_slots[ring_cursor<P.stages>{k_cursor_.index - 2}.stage()]);
      }
    };
    float factor[2];
    const bool raised = exponentiate<false>(s, item, score, note, rows, next, factor, [&] {
      if constexpr (P.early_weights > 0) finish_product();
    });
    if constexpr (P.early_weights == 0) finish_product();
    if (raised) scale_rows(out, factor);
    return note;
  }

  /// What the producer says of the keys at hand, read by the lane that gives them back.
  __device__ tile_note take_note() const {
    std::uint32_t bits = 0;
    if (lane_ == 0) bits = smem_.notes[k_cursor_.stage()].bits;
    return {__reduce_or_sync(~0u, bits)};
  }

  __device__ bool next_keys_arrived() {
    const ring_cursor<P.stages> next{k_cursor_.index + 1};
    return smem_.k_slots[next.stage()].is_full(next.round());
  }

  /// An item begins with nothing, or with what earlier calls saw of its rows; while its first
  /// scores form.
  __device__ void begin(const work_item& item, float (&out)[P.v_dim / 2],
                        optimistic_softmax<T>& rows) const {
    rows = {};
    if constexpr (Arguments::carries) {
      if (item.continues()) {
        load_states(args_, item, first_query(item, lane_), out, rows);
        return;
      }
    }
#pragma unroll
    for (int i = 0; i < P.v_dim / 2; ++i) out[i] = 0;
  }

  __device__ void store(const work_item& item, float (&out)[P.v_dim / 2],
                        const optimistic_softmax<T>& rows) {
    const int lane = lane_here();
    const int q = first_query(item, lane);
    if constexpr (Arguments::carries) {
      if (item.stays_open()) {
        store_states(args_, item, q, out, rows);
        return;
      }
    }
    const int column = fragment_layout::first_column(lane);
    finish_rows(args_, item, q, column, out, rows);
    if constexpr (Arguments::copies_out) {
      copy_out(item, out);
    } else {
      store_rows(args_, item, q, column, out);
    }
  }

  /// Results take the place of the item's queries, and the copy engine takes each warp's from
  /// there.
  __device__ void copy_out(const work_item& item, const float (&out)[P.v_dim / 2]) {
    constexpr operand_layout layout = output_layout(P);
    std::byte* tile = smem_.q[finished_queries().stage()];
    ptx::barrier_sync(group_barrier(), 128); // all have their last scores: queries are used up
    stage_rows<typename Arguments::output_type, layout>(tile, 16 * strip_, lane_here(), out);
    ::cuda::ptx::fence_proxy_async(::cuda::ptx::space_shared);
    __syncwarp();
    if (lane_here() == 0) {
#pragma unroll
      for (int c = 0; c < layout.chunks(); ++c) {
        ptx::store_box(args_.copied_out,
                       tile + c * layout.chunk_bytes() + 16 * strip_ * layout.row_bytes(),
                       c * layout.chunk_columns(), args_.first_row(item.q_tile) + 16 * strip_,
                       item.head, item.batch);
      }
      ::cuda::ptx::cp_async_bulk_commit_group();
    }
  }

  /// Gives the place of the queries before back once the copy engine has read the results there.
  __device__ void finish_copy() {
    if constexpr (Arguments::copies_out) {
      if (lane_here() != 0 || q_cursor_.index == 0) return;
      ::cuda::ptx::cp_async_bulk_wait_group_read(::cuda::ptx::n32_t<0>{});
      ptx::arrive(smem_.q_slots[finished_queries().stage()].empty);
    }
  }

  /// Where the queries of the item before the one at hand are.
  __device__ ring_cursor<P.query_stages> finished_queries() const { return {q_cursor_.index - 1}; }
  // Turns have the barriers before.
  __device__ int group_barrier() const { return 1 + P.consumers() + group_; }

  /// The block's next item that sees anything; writes the rows of those that see nothing.
  __device__ work_item next_item() {
    for (;;) {
      const work_item item = smem_.take_work(work_round_++);
      if (!item.valid() || !item.sees_nothing()) return item;
      const int q = first_query(item, lane_), column = fragment_layout::first_column(lane_);
      if constexpr (Arguments::carries) {
        pass_unseen_states(args_, item, q, column);
      } else {
        store_unseen_rows(args_, item, q, column);
      }
    }
  }

  /// Weights of a tile's scores. Returns whether outputs summed so far must be multiplied by
  /// `factor`, which is set only then.
  ///
  /// Of a tile behind the first, local modifiers are applied on the way. `ready` as in
  /// update_early.
  template <bool First, class Ready>
  __device__ bool exponentiate(float (&s)[score_count], const work_item& item,
                               const item_score& score, tile_note note, optimistic_softmax<T>& rows,
                               weights& p, float (&factor)[2], const Ready& ready) {
    const auto update = [&](float in_units, const auto& modified) {
      if constexpr (P.early_weights > 0 && !First) {
        return rows.template update_early<P.early_weights>(s, in_units, p, factor, modified, ready);
      } else {
        return rows.update(s, in_units, p, factor, modified);
      }
    };
    const auto origin = [&] {
      const int lane = lane_here();
      return score_origin{item.batch, item.head, first_query(item, lane),
                          note.tile() * P.tile.kv + fragment_layout::first_column(lane)};
    };
    const float unit = Arguments::has_score ? log2_e : args_.scale * log2_e;
    if constexpr (!First && local_score<item_score>) {
      if (!note.partial()) {
        const score_origin at = origin();
        const auto near = score.from(at.q, at.kv);
        const auto modify = [&](const auto& functor, float scale, float in_units) {
          return update(in_units, [&](float product, int i) {
            return static_cast<float>(functor(score_number<T>{product * scale},
                                              8 * fragment_layout::row(i),
                                              fragment_layout::column(i)));
          });
        };
        if constexpr (requires { near.scaled(args_.scale, unit); }) {
          return modify(near.scaled(args_.scale, unit), 1.0f, 1.0f);
        } else {
          return modify(near, args_.scale, unit);
        }
      }
    }
    if constexpr (Arguments::has_score) {
      apply_score<score_number<T>>(s, score, args_.scale, origin(), args_.q_len, args_.kv_len);
    }
    if (note.partial()) hide(s, origin());
    return update(unit, [](float known, int) { return known; });
  }

  /// Writes −inf where the mask hides scores of a partial tile.
  __device__ void hide(float (&s)[score_count], score_origin at) {
    slot_barriers& slot = smem_.verdict_slots[verdict_cursor_.stage()];
    slot.wait_full(verdict_cursor_.round());
    const auto kept = scores_kept(args_, smem_.verdicts[verdict_cursor_.stage()], strip_, at);
    ptx::arrive(slot.empty); // by each lane: each has read for itself
    verdict_cursor_.advance();
    kept.apply(s);
  }

  /// S = Q Kᵀ, asynchronously.
  __device__ void multiply_keys(float (&s)[score_count]) {
    constexpr operand_layout q = query_layout(P);
    constexpr operand_layout k = key_layout(P);
    const std::uint64_t queries = ptx::describe(
        smem_.q[q_cursor_.stage()] + group_ * 64 * q.row_bytes(), q.swizzle(), q.atom_bytes());
    const std::uint64_t keys =
        ptx::describe(smem_.k[k_cursor_.stage()], k.swizzle(), k.atom_bytes());
    ptx::pin(s);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < P.qk_dim / 16; ++step) {
      ptx::wgmma<P.tile.kv>::template shared<T, 0>(s, ptx::advance(queries, q.column_step(step)),
                                                   ptx::advance(keys, k.column_step(step)),
                                                   step != 0);
    }
    ptx::wgmma_commit();
  }

  /// out += P V, asynchronously. `queue_next` is called ahead of the last products, so that those
  /// of the next group queue up behind them with no gap.
  template <class Queue>
  __device__ void multiply_values(weights& p, float (&out)[P.v_dim / 2], const Queue& queue_next) {
    constexpr operand_layout v = value_layout(P);
    constexpr int steps = P.tile.kv / 16;
    const std::uint64_t values =
        ptx::describe(smem_.v[v_cursor().stage()], v.swizzle(), v.atom_bytes(), v.chunk_bytes());
    ptx::pin(p);
    ptx::pin(out);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      if (step == steps - 2) queue_next();
      ptx::wgmma<P.v_dim>::template registers<T, 1>(out, p + 4 * step,
                                                    ptx::advance(values, v.row_step(step)), 1);
    }
    ptx::wgmma_commit();
  }
  __device__ void multiply_values(weights& p, float (&out)[P.v_dim / 2]) {
    multiply_values(p, out, [] {});
  }

  /// This thread's lane, unknown until here: what follows from it is then not computed ahead, in
  /// registers that the loop over tiles needs.
  __device__ int lane_here() const {
    int lane = lane_;
    asm volatile("" : "+r"(lane));
    return lane;
  }
  /// The first of the two rows of a lane.
  __device__ int first_query(const work_item& item, int lane) const {
    return args_.first_row(item.q_tile) + 16 * strip_ + fragment_layout::first_row(lane);
  }

  // Turns go round the groups: barrier 1 + g holds group g back until the group before it arrives.
  __device__ void await_turn() {
    if constexpr (P.ping_pong) ptx::barrier_sync(1 + group_, 256);
  }
  __device__ void give_turn() {
    if constexpr (P.ping_pong) {
      ptx::barrier_arrive(1 + (group_ + 1 == P.consumers() ? 0 : group_ + 1), 256);
    }
  }

  /// Values are used one tile behind keys.
  __device__ ring_cursor<P.stages> v_cursor() const { return {k_cursor_.index - 1}; }

  __device__ void wait_queries() { smem_.q_slots[q_cursor_.stage()].wait_full(q_cursor_.round()); }
  __device__ void wait_keys() { smem_.k_slots[k_cursor_.stage()].wait_full(k_cursor_.round()); }
  __device__ void wait_values() { smem_.v_slots[v_cursor().stage()].wait_full(v_cursor().round()); }
  __device__ void release(slot_barriers& slot) {
    if (lane_ == 0) ptx::arrive(slot.empty);
  }
  /// What the scores just formed were made of: the keys, and the queries if they were the last and
  /// results do not take their place.
  __device__ void release_scored(tile_note note) {
    release(smem_.k_slots[k_cursor_.stage()]);
    k_cursor_.advance();
    if (note.last() && !Arguments::copies_out) release(smem_.q_slots[q_cursor_.stage()]);
  }

  const Arguments& args_;
  storage& smem_;
  int group_, lane_;
  int strip_; ///< of 16 rows of the tile, this warp's
  std::uint32_t work_round_ = 0;
  ring_cursor<P.query_stages> q_cursor_;
  ring_cursor<P.stages> k_cursor_, verdict_cursor_;
};

} // namespace maskring::cuda::detail::sm90
