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

/// What a tile's softmax asks of the output summed before it.
struct rescaling {
  float factor[2] = {1, 1};
  bool changed = false;

  template <int Count>
  __device__ void apply(float (&out)[Count]) const {
    if (changed) scale_rows(out, factor);
  }
};

/// One warpgroup's share of the block: 64 query rows.
///
/// While the tensor cores form the next tile's scores and this tile's product with V, the group
/// exponentiates; with ping-pong the other groups' products fill what that leaves.
template <class Arguments>
class consumer {
  static constexpr forward_policy P = Arguments::policy;
  static constexpr int score_count = P.tile.kv / 2;
  using T = typename Arguments::input_type;
  using storage = forward_storage<P>;
  using item_score = decltype(score_at(std::declval<const Arguments&>().score, 0, 0));

public:
  __device__ consumer(const Arguments& args, storage& smem, int group)
      : args_{args},
        smem_{smem},
        group_{group},
        lane_{static_cast<int>(threadIdx.x) % 32},
        row_{group * 64 + static_cast<int>(threadIdx.x) / 32 % 4 * 16 +
             fragment_layout::first_row(lane_)} {}

  /// All items of the block, as one stream of tiles: an item's last product with V and its way to
  /// memory overlap with the next item's first scores.
  __device__ void run() {
    float s[score_count];
    std::uint32_t p[P.tile.kv / 4];
    float out[P.v_dim / 2] = {};
    rescaling scales;
    online_softmax rows;

    work_item item = next_item();
    if (!item.valid()) return;
    if (P.ping_pong && group_ == P.consumers() - 1) give_turn();
    wait_queries();
    wait_keys();
    multiply_keys(s);
    ptx::wgmma_wait<0>(s);
    for (;;) {
      const item_score score = score_at(args_.score, item.batch, item.head);
      tile_note note = smem_.notes[k_cursor_.stage()];
      release_keys();
      exponentiate(s, item, score, note, rows, scales);
      finish_copy();
      pack(s, p);
      prepare(note);
      while (!note.last()) note = step(s, p, out, item, score, rows, scales);
      if (!copying_warp()) release(smem_.q_slots[q_cursor_.stage()]);
      q_cursor_.advance();

      const work_item next = next_item();
      if (!next.valid()) break;
      if constexpr (P.rescale_early) scales.apply(out);
      await_turn();
      wait_values();
      multiply_values(p, out);
      wait_queries();
      wait_keys();
      multiply_keys(s);
      give_turn();
      ptx::wgmma_wait<1>(out, p);
      release_values();
      store(item, out, rows);
#pragma unroll
      for (float& sum : out) sum = 0;
      rows = {};
      item = next;
      ptx::wgmma_wait<0>(s);
    }
    if constexpr (P.rescale_early) scales.apply(out);
    wait_values();
    multiply_values(p, out);
    ptx::wgmma_wait<0>(out, p);
    store(item, out, rows);
    finish_copy();
    if (P.ping_pong && group_ == 0) await_turn(); // leaves no barrier half full
  }

private:
  /// The next tile's scores and softmax, around this tile's product with V; both operands are
  /// there.
  __device__ tile_note step(float (&s)[score_count], std::uint32_t (&p)[P.tile.kv / 4],
                            float (&out)[P.v_dim / 2], const work_item& item,
                            const item_score& score, online_softmax& rows, rescaling& scales) {
    await_turn();
    multiply_keys(s);
    if constexpr (P.rescale_early) scales.apply(out);
    multiply_values(p, out);
    give_turn();
    const tile_note note = smem_.notes[k_cursor_.stage()];
    ptx::wgmma_wait<1>(s);
    release_keys();
    exponentiate(s, item, score, note, rows, scales);
    // The assembler moves a wait for wgmma up through arithmetic, which would put the softmax
    // behind the product that it is to overlap. It does not move it past the waits of `prepare`.
    ptx::pin(s);
    ptx::pin(rows.sum);
    ring_cursor<P.stages> values = v_cursor_;
    v_cursor_.advance();
    prepare(note);
    ptx::wgmma_wait<0>(out, p);
    release(smem_.v_slots[values.stage()]);
    pack(s, p);
    if constexpr (!P.rescale_early) scales.apply(out);
    return note;
  }

  /// Waits for what the next step multiplies.
  __device__ void prepare(tile_note note) {
    slot_barriers& k = smem_.k_slots[k_cursor_.stage()];
    slot_barriers& v = smem_.v_slots[v_cursor_.stage()];
    if (!note.last()) ptx::wait(k.full, k_cursor_.round() & 1, v.full, v_cursor_.round() & 1);
  }

  __device__ void store(const work_item& item, float (&out)[P.v_dim / 2],
                        const online_softmax& rows) {
    const int q = item.q_tile * P.tile.q + row_;
    const int column = fragment_layout::first_column(lane_);
    finish_rows(args_, item, q, column, out, rows);
    if constexpr (Arguments::copies_out) {
      copy_out(item, out);
    } else {
      store_rows(args_, item, q, column, out);
    }
  }

  /// Results take the place of the item's queries, and the copy engine takes them from there.
  __device__ void copy_out(const work_item& item, const float (&out)[P.v_dim / 2]) {
    constexpr operand_layout layout = output_layout(P);
    std::byte* tile = smem_.q[finished_queries().stage()];
    ptx::barrier_sync(group_barrier(), 128); // all have their last scores: queries are used up
    stage_rows<typename Arguments::output_type, layout>(
        tile, row_ - fragment_layout::first_row(lane_), out);
    ::cuda::ptx::fence_proxy_async(::cuda::ptx::space_shared);
    ptx::barrier_sync(group_barrier(), 128);
    if (copying_warp() && lane_ == 0) {
#pragma unroll
      for (int c = 0; c < layout.chunks(); ++c) {
        ptx::store_box(args_.copied_out,
                       tile + c * layout.chunk_bytes() + group_ * 64 * layout.row_bytes(),
                       c * layout.chunk_columns(), item.q_tile * P.tile.q + group_ * 64, item.head,
                       item.batch);
      }
      ::cuda::ptx::cp_async_bulk_commit_group();
    }
  }

  /// Gives the place of the queries before back once the copy engine has read the results there.
  __device__ void finish_copy() {
    if constexpr (Arguments::copies_out) {
      if (!copying_warp() || lane_ != 0 || q_cursor_.index == 0) return;
      ::cuda::ptx::cp_async_bulk_wait_group_read(::cuda::ptx::n32_t<0>{});
      ptx::arrive(smem_.q_slots[finished_queries().stage()].empty);
    }
  }

  /// The warp that stands for its group with the copy engine.
  __device__ bool copying_warp() const {
    return Arguments::copies_out && threadIdx.x / 32 % 4 == 0;
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
      store_unseen_rows(args_, item, item.q_tile * P.tile.q + row_,
                        fragment_layout::first_column(lane_));
    }
  }

  __device__ void exponentiate(float (&s)[score_count], const work_item& item,
                               const item_score& score, tile_note note, online_softmax& rows,
                               rescaling& scales) {
    const score_origin at{item.batch, item.head, item.q_tile * P.tile.q + row_,
                          note.tile() * P.tile.kv + fragment_layout::first_column(lane_)};
    if constexpr (Arguments::has_score) {
      apply_score<score_number<T>>(s, score, args_.scale, at, args_.q_len, args_.kv_len);
    }
    if (note.partial()) {
      slot_barriers& slot = smem_.verdict_slots[verdict_cursor_.stage()];
      slot.wait_full(verdict_cursor_.round());
      const kept_scores<P> kept{args_, smem_.verdicts[verdict_cursor_.stage()], row_ / 16, at};
      release(slot);
      verdict_cursor_.advance();
      kept.apply(s);
    }
    const float unit = Arguments::has_score ? log2_e : args_.scale * log2_e;
    scales.changed = rows.template update<P.lazy>(s, unit, scales.factor);
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

  /// out += P V, asynchronously.
  __device__ void multiply_values(std::uint32_t (&p)[P.tile.kv / 4], float (&out)[P.v_dim / 2]) {
    constexpr operand_layout v = value_layout(P);
    const std::uint64_t values =
        ptx::describe(smem_.v[v_cursor_.stage()], v.swizzle(), v.atom_bytes(), v.chunk_bytes());
    ptx::pin(p);
    ptx::pin(out);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < P.tile.kv / 16; ++step) {
      ptx::wgmma<P.v_dim>::template registers<T, 1>(out, p + 4 * step,
                                                    ptx::advance(values, v.row_step(step)), 1);
    }
    ptx::wgmma_commit();
  }

  static __device__ void pack(const float (&s)[score_count], std::uint32_t (&p)[P.tile.kv / 4]) {
#pragma unroll
    for (int i = 0; i < P.tile.kv / 4; ++i) p[i] = ptx::pack<T>(s[2 * i], s[2 * i + 1]);
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

  __device__ void wait_queries() { smem_.q_slots[q_cursor_.stage()].wait_full(q_cursor_.round()); }
  __device__ void wait_keys() { smem_.k_slots[k_cursor_.stage()].wait_full(k_cursor_.round()); }
  __device__ void wait_values() { smem_.v_slots[v_cursor_.stage()].wait_full(v_cursor_.round()); }
  __device__ void release(slot_barriers& slot) {
    if (lane_ == 0) ptx::arrive(slot.empty);
  }
  __device__ void release_keys() {
    release(smem_.k_slots[k_cursor_.stage()]);
    k_cursor_.advance();
  }
  __device__ void release_values() {
    release(smem_.v_slots[v_cursor_.stage()]);
    v_cursor_.advance();
  }

  const Arguments& args_;
  storage& smem_;
  int group_, lane_, row_;
  std::uint32_t work_round_ = 0;
  ring_cursor<P.query_stages> q_cursor_;
  ring_cursor<P.stages> k_cursor_, v_cursor_, verdict_cursor_;
};

} // namespace maskring::cuda::detail::sm90
