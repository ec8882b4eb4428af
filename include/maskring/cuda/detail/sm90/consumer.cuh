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
    tile_note note = take_note();
    ptx::wgmma_wait<0>(s);
    row_factors factors;
    for (;;) {
      const item_score score = score_at(args_.score, item.batch, item.head);
      release_scored(note);
      exponentiate_first(s, item, score, note, rows, p[0], out);
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

      factors = finish(item, rows); // here, where the group waits for its turn
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
      store(item, out, rows, factors);
      item = next;
      begin(item, out, rows);
      note = take_note();
      ptx::wgmma_wait<0>(s);
    }
    wait_values();
    multiply_values(p[0], out);
    ptx::wgmma_wait<0>(out, p[0]);
    store(item, out, rows, factors);
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
    const tile_note note = take_note(); // while the scores form, which take longer
    wait_values();
    multiply_values(p, out, [this] { give_turn(); });
    const bool arrived = next_keys_arrived(); // asked here, where the answer may take its time
    const auto scores_formed = [&] {
      if constexpr (products_finish_together) {
        ptx::wgmma_wait<0>(s, out, p);
        release(smem_.v_slots[v_cursor().stage()]);
      } else {
        ptx::wgmma_wait<1>(s);
      }
      release_scored(note);
    };
    const auto finish_product = [&] {
      // ptxas would move the wait up, were there no branch ahead of it.
      if (!arrived && !note.last()) wait_keys();
      if constexpr (!products_finish_together) {
        ptx::wgmma_wait<0>(out, p);
        release(smem_.v_slots[ring_cursor<P.stages>{k_cursor_.index - 2}.stage()]);
      }
    };
    float factor[2];
    if (exponentiate(s, item, score, note, rows, next, factor, scores_formed, finish_product))
        [[unlikely]] {
      scale_rows(out, factor);
    }
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

  /// An item's rows have seen all their tiles: stores their log-sum-exp.
  __device__ row_factors finish(const work_item& item, const optimistic_softmax<T>& rows) const {
    if constexpr (Arguments::carries) {
      if (item.stays_open()) return {};
    }
    const int lane = lane_here();
    return finish_states(args_, item, first_query(item, lane), fragment_layout::first_column(lane),
                         rows);
  }

  __device__ void store(const work_item& item, float (&out)[P.v_dim / 2],
                        const optimistic_softmax<T>& rows, const row_factors& factors) {
    const int lane = lane_here();
    const int q = first_query(item, lane);
    if constexpr (Arguments::carries) {
      if (item.stays_open()) {
        store_states(args_, item, q, out, rows);
        return;
      }
    }
    const int column = fragment_layout::first_column(lane);
    finish_rows(args_, item, q, column, out, factors);
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

  /// Weights of the scores of an item's first tile.
  __device__ void exponentiate_first(float (&s)[score_count], const work_item& item,
                                     const item_score& score, tile_note note,
                                     optimistic_softmax<T>& rows, weights& p,
                                     float (&out)[P.v_dim / 2]) {
    modify(s, item, score, note);
    if (note.partial()) hide(s, origin(item, note));
    if constexpr (Arguments::carries) { // there may be outputs of earlier calls
      float factor[2];
      if (rows.update(s, unit(), p, factor, [](float known, int) { return known; })) {
        scale_rows(out, factor);
      }
    } else {
      rows.begin(s, unit(), p);
    }
  }

  /// Weights of another tile's scores, which are there once `scores_formed()` has returned;
  /// `finish_product()` ends the product with V that is under way. Returns whether outputs summed
  /// so far must be multiplied by `factor`, which is set only then.
  ///
  /// What the usual tile needs lies together and has no branch behind the scores: the question
  /// whether there is anything to hide is answered before they are there. Local modifiers are
  /// applied on the way.
  template <class Formed, class Finish>
  __device__ bool exponentiate(float (&s)[score_count], const work_item& item,
                               const item_score& score, tile_note note, optimistic_softmax<T>& rows,
                               weights& p, float (&factor)[2], const Formed& scores_formed,
                               const Finish& finish_product) {
    const auto update = [&](float in_units, const auto& modified) {
      if constexpr (P.early_weights > 0) {
        return rows.template update_early<P.early_weights>(s, in_units, p, factor, modified,
                                                           finish_product);
      } else {
        const bool raised = rows.update(s, in_units, p, factor, modified);
        finish_product();
        return raised;
      }
    };
    if constexpr (local_score<item_score>) {
      scores_formed();
      if (!note.partial()) [[likely]] {
        const score_origin at = origin(item, note);
        const auto near = score.from(at.q, at.kv);
        const auto apply = [&](const auto& functor, float scale, float in_units) {
          return update(in_units, [&](float product, int i) {
            return static_cast<float>(functor(score_number<T>{product * scale},
                                              8 * fragment_layout::row(i),
                                              fragment_layout::column(i)));
          });
        };
        const float in_units = unit(); // as a variable, or nvcc does not find scaled()
        if constexpr (requires { near.scaled(args_.scale, in_units); }) {
          return apply(near.scaled(args_.scale, in_units), 1.0f, 1.0f);
        } else {
          return apply(near, args_.scale, in_units);
        }
      }
    }
    if constexpr (!Arguments::has_score && !products_finish_together) {
      if (note.partial()) [[unlikely]] {
        scores_formed();
        hide(s, origin(item, note));
      } else {
        scores_formed();
      }
    } else {
      if constexpr (!local_score<item_score>) scores_formed();
      modify(s, item, score, note);
      if (note.partial()) hide(s, origin(item, note));
    }
    return update(unit(), [](float known, int) { return known; });
  }

  /// The score modifier, if there is one.
  __device__ void modify(float (&s)[score_count], const work_item& item, const item_score& score,
                         tile_note note) const {
    if constexpr (Arguments::has_score) {
      apply_score<score_number<T>>(s, score, args_.scale, origin(item, note), args_.q_len,
                                   args_.kv_len);
    }
  }

  /// The factor of scores to the base of 2.
  __device__ float unit() const { return Arguments::has_score ? log2_e : args_.scale * log2_e; }
  /// Where this thread's scores of a tile lie.
  __device__ score_origin origin(const work_item& item, tile_note note) const {
    const int lane = lane_here();
    return {item.batch, item.head, first_query(item, lane),
            note.tile() * P.tile.kv + fragment_layout::first_column(lane)};
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
