// SPDX-License-Identifier: Apache-2.0
// The Hopper forward kernel's consumer warpgroups: the two products and the softmax between them.
#pragma once

#include <maskring/cuda/detail/ptx/named_barrier.cuh>
#include <maskring/cuda/detail/ptx/wgmma.cuh>
#include <maskring/cuda/detail/sm90/arguments.cuh>
#include <maskring/cuda/detail/sm90/epilogue.cuh>
#include <maskring/cuda/detail/softmax.cuh>

namespace maskring::cuda::detail::sm90 {

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

public:
  __device__ consumer(const Arguments& args, storage& smem, int group)
      : args_{args},
        smem_{smem},
        group_{group},
        lane_{static_cast<int>(threadIdx.x) % 32},
        row_{group * 64 + static_cast<int>(threadIdx.x) / 32 % 4 * 16 +
             fragment_layout::first_row(lane_)},
        q_{ptx::describe(smem.q + group * 64 * query_layout(P).row_bytes(),
                         query_layout(P).swizzle(), query_layout(P).atom_bytes())} {}

  __device__ void run() {
    if (P.ping_pong && group_ == P.consumers() - 1) give_turn();
    for (std::uint32_t work_round = 0;; ++work_round) {
      smem_.work_slot.wait_full(work_round);
      item_ = smem_.work;
      release(smem_.work_slot);
      if (!item_.valid()) break;
      float out[P.v_dim / 2] = {};
      online_softmax rows;
      if (!item_.sees_nothing()) attend(out, rows);
      store_rows(args_, item_, item_.q_tile * P.tile.q + row_, fragment_layout::first_column(lane_),
                 out, rows);
    }
    if (P.ping_pong && group_ == 0) await_turn(); // leaves no barrier half full
  }

private:
  /// Sums the item's tiles into `out`, not yet normalised.
  __device__ void attend(float (&out)[P.v_dim / 2], online_softmax& rows) {
    float s[score_count];
    std::uint32_t p[P.tile.kv / 4];
    float factor[2];

    smem_.q_slot.wait_full(q_round_++);
    wait_keys();
    tile_note note = smem_.notes[k_cursor_.stage];
    multiply_keys(s);
    ptx::wgmma_wait<0>(s);
    release_keys();
    exponentiate(s, rows, note, factor);
    pack(s, p);
    if (!note.last()) wait_keys();

    while (!note.last()) {
      await_turn();
      multiply_keys(s);
      if constexpr (P.rescale_early) scale_rows(out, factor);
      wait_values();
      multiply_values(p, out);
      give_turn();
      note = smem_.notes[k_cursor_.stage];
      ptx::wgmma_wait<1>(s);
      release_keys();
      exponentiate(s, rows, note, factor);
      // The assembler moves a wait for wgmma up through arithmetic, which would put the softmax
      // behind the product that it is to overlap; it does not move it past this one.
      ptx::pin(s);
      if (!note.last()) wait_keys();
      ptx::wgmma_wait<0>(out);
      ptx::pin(p);
      release_values();
      pack(s, p);
      if constexpr (!P.rescale_early) scale_rows(out, factor);
    }
    release(smem_.q_slot);

    if constexpr (P.rescale_early) scale_rows(out, factor);
    wait_values();
    multiply_values(p, out);
    ptx::wgmma_wait<0>(out);
    ptx::pin(p);
    release_values();
  }

  __device__ void exponentiate(float (&s)[score_count], online_softmax& rows, tile_note note,
                               float (&factor)[2]) {
    const score_origin at{item_.batch, item_.head, item_.q_tile * P.tile.q + row_,
                          note.tile() * P.tile.kv + fragment_layout::first_column(lane_)};
    if constexpr (Arguments::has_score) apply_score(s, args_.score, args_.scale, at, args_.q_len);
    if (note.partial()) apply_mask(s, args_.mask, at, args_.q_len, args_.kv_len);
    rows.update(s, Arguments::has_score ? log2_e : args_.scale * log2_e, factor);
  }

  /// S = Q Kᵀ, asynchronously.
  __device__ void multiply_keys(float (&s)[score_count]) {
    constexpr operand_layout q = query_layout(P);
    constexpr operand_layout k = key_layout(P);
    const std::uint64_t keys = ptx::describe(smem_.k[k_cursor_.stage], k.swizzle(), k.atom_bytes());
    ptx::pin(s);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < P.qk_dim / 16; ++step) {
      ptx::wgmma<P.tile.kv>::template shared<T, 0>(s, ptx::advance(q_, q.column_step(step)),
                                                   ptx::advance(keys, k.column_step(step)),
                                                   step != 0);
    }
    ptx::wgmma_commit();
  }

  /// out += P V, asynchronously.
  __device__ void multiply_values(std::uint32_t (&p)[P.tile.kv / 4], float (&out)[P.v_dim / 2]) {
    constexpr operand_layout v = value_layout(P);
    const std::uint64_t values =
        ptx::describe(smem_.v[v_cursor_.stage], v.swizzle(), v.atom_bytes(), v.chunk_bytes());
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

  __device__ void wait_keys() { smem_.k_slots[k_cursor_.stage].wait_full(k_cursor_.round); }
  __device__ void wait_values() { smem_.v_slots[v_cursor_.stage].wait_full(v_cursor_.round); }
  __device__ void release(slot_barriers& slot) {
    if (lane_ == 0) ptx::arrive(slot.empty);
  }
  __device__ void release_keys() {
    release(smem_.k_slots[k_cursor_.stage]);
    k_cursor_.advance();
  }
  __device__ void release_values() {
    release(smem_.v_slots[v_cursor_.stage]);
    v_cursor_.advance();
  }

  const Arguments& args_;
  storage& smem_;
  int group_, lane_, row_;
  std::uint64_t q_;
  work_item item_;
  std::uint32_t q_round_ = 0;
  ring_cursor<P.stages> k_cursor_, v_cursor_;
};

} // namespace maskring::cuda::detail::sm90
