// SPDX-License-Identifier: Apache-2.0
// The Hopper backward kernel's consumer groups: five products a step, weights and their gradients
// between them.
//
// Scores and their gradients are formed transposed, 64 keys a group: so they leave the first two
// products as the A operand that those with output gradients (dv) and queries (dk) need, in
// registers. Only dq needs them in shared memory, from both groups; it is formed a step later, so
// that they need not keep step, and added to memory while dk and the next scores are formed.
#pragma once

#include <maskring/cuda/detail/kept_scores.cuh>
#include <maskring/cuda/detail/learn.cuh>
#include <maskring/cuda/detail/ptx/exp2.cuh>
#include <maskring/cuda/detail/ptx/ldmatrix.cuh>
#include <maskring/cuda/detail/ptx/red.cuh>
#include <maskring/cuda/detail/ptx/wgmma.cuh>
#include <maskring/cuda/detail/sm80/backward_warps.cuh>
#include <maskring/cuda/detail/sm90/backward_policy.cuh>
#include <maskring/cuda/detail/softmax.cuh>
#include <maskring/cuda/detail/store.cuh>

#include <type_traits>

namespace maskring::cuda::detail::sm90 {

template <class Arguments>
class backward_consumer {
  static constexpr backward_policy P = Arguments::policy;
  static constexpr int score_count = P.tile.q / 2; ///< of a thread, of a step: 64 keys × tile.q
  static constexpr int sum_count = P.dim / 2;      ///< of dk or dv
  static constexpr int blocks = P.tile.q / 16;     ///< of 16 queries, of a warp's 16 keys
  using T = typename Arguments::input_type;
  using storage = backward_storage<P>;
  using pairs = std::uint32_t[score_count / 2]; ///< rounded
  using row_values = float[P.tile.q / 4];       ///< of the thread's queries
  /// Whether registers are left to read the next log-sum-exps ahead of the additions to dq, behind
  /// which they would wait long, and to keep the row of the step before. What is spilled near those
  /// additions waits for them.
  static constexpr bool spares_registers = P.tile.q == 64;

  /// Which of a thread's scores are kept.
  struct kept_words {
    std::uint32_t word[(score_count + 31) / 32];
    __device__ bool has(int i) const { return word[i / 32] >> i % 32 & 1; }
  };
  struct all_kept {
    static constexpr std::true_type has(int) { return {}; }
  };

public:
  __device__ backward_consumer(const Arguments& args, storage& smem, int group)
      : args_{args},
        smem_{smem},
        group_{group},
        warp_{__shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32 % 4, 0)} {}

  __device__ void run() {
    float s[score_count], dk[sum_count], dv[sum_count];
    row_values lse2;
    for (std::uint32_t unit = 0;; ++unit) {
      step_head head = smem_.read_head(cursor_);
      if (head.what() == step_head::end_of_work) return;
      smem_.k_slot.wait_full(unit);
      smem_.v_slot.wait_full(unit);
#pragma unroll
      for (int i = 0; i < sum_count; ++i) dk[i] = dv[i] = 0;
      multiply_transposed(s, smem_.k, smem_.q[cursor_.stage()]);
      if constexpr (spares_registers) load_rows(lse2, smem_.lse2[cursor_.stage()]);
      ptx::wgmma_wait<0>(s);
      const std::uint32_t first = cursor_.index;
      int before = 0; // where the step before has its queries
      while (head.has_queries()) {
        const step_head now = head;
        head = step(now, first, before, s, lse2, dk, dv);
        before = now.row();
      }
      if (cursor_.index != first) {
        float dq[32];
        await_gradients();
        multiply_by_keys(dq);
        ptx::wgmma_wait<0>(dq);
        add_to_queries(dq, smem_.head_at(cursor_.index - 1).row());
      }
      const step_note note = smem_.read_note(cursor_);
      release(smem_.k_slot);
      release(smem_.v_slot);
      ptx::arrive(smem_.q_slots[cursor_.stage()].empty); // the note's
      cursor_.advance();
      store(note, dk, dv);
    }
  }

private:
  /// Takes in a tile of queries, whose scores are there, but for its dq; makes the dq of the step
  /// before, unless this is the unit's `first`, and the next scores. At the ends of a unit one or
  /// the other is not used: a branch would have ptxas let products wait for each other.
  __device__ step_head step(const step_head& head, std::uint32_t first, int row_before,
                            float (&s)[score_count], row_values& lse2, float (&dk)[sum_count],
                            float (&dv)[sum_count]) {
    const bool follows = cursor_.index != first;
    const int stage = cursor_.stage(), o_stage = static_cast<int>(steps_ % P.stages);
    slot_barriers& o_slot = smem_.o_slots[o_stage];
    o_slot.wait_full(steps_ / P.stages);
    float ds[score_count];
    multiply_transposed(ds, smem_.v, smem_.o[o_stage]);

    if constexpr (!spares_registers) load_rows(lse2, smem_.lse2[stage]);
    const bool partial = head.what() == step_head::partial;
    kept_words kept{};
    if (partial) kept = look_at_scores(smem_.read_note(cursor_));
    const auto weigh = [&](const auto& keeps) {
      if constexpr (Arguments::has_score) {
        modify(s, ds, lse2, smem_.delta[o_stage], smem_.read_note(cursor_), keeps);
      } else {
#pragma unroll
        for (int i = 0; i < score_count; ++i) {
          s[i] = ptx::exp2(s[i] * args_.unit - lse2[row_value(i)]);
          if (!keeps.has(i)) s[i] = 0;
        }
      }
    };
    if constexpr (Arguments::has_score) ptx::wgmma_wait<0>(ds);
    if (partial) {
      weigh(kept);
    } else {
      weigh(all_kept{});
    }
    pairs p, d;
    round(s, p);
    if constexpr (!Arguments::has_score) ptx::wgmma_wait<0>(ds);
    add_product(dv, p, smem_.o[o_stage]);
    __syncwarp(); // ptxas would form the gradients between the parts of that product
    if constexpr (!Arguments::has_score) {
      row_values delta;
      load_rows(delta, smem_.delta[o_stage]);
#pragma unroll
      for (int i = 0; i < score_count; ++i) { // by the rounded weights, which are there anyway
        ds[i] = weight(p, i) * (ds[i] - delta[row_value(i)]);
      }
    }
    round(ds, d);
    if (follows) await_gradients();
    leave(d);
    float dq[32];
    multiply_by_keys(dq);
    show_gradients(); // behind it, for the fence takes long
    add_product(dk, d, smem_.q[stage]);
    cursor_.advance();
    const step_head next = smem_.read_head(cursor_);
    ptx::wgmma_wait<2>(p);
    ptx::arrive(o_slot.empty);
    multiply_transposed(s, smem_.k, smem_.q[cursor_.stage()]);
    if constexpr (spares_registers) {
      load_rows(lse2, smem_.lse2[cursor_.stage()]);
      ptx::pin(lse2);
    }
    ptx::wgmma_wait<2>(dq);
    if (follows) {
      add_to_queries(dq, spares_registers ? row_before : smem_.head_at(cursor_.index - 2).row());
    }
    ptx::wgmma_wait<0>(s, d, dk, dv);
    ptx::arrive(smem_.q_slots[stage].empty);
    ++steps_;
    return next;
  }

  /// Sᵀ = K Qᵀ of the group's 64 keys, or their products V dOᵀ, asynchronously.
  __device__ void multiply_transposed(float (&s)[score_count], const std::byte* keys,
                                      const std::byte* queries) const {
    constexpr operand_layout left = P.k_layout(), right = P.q_layout();
    const std::uint64_t a =
        ptx::describe(keys + group_ * 64 * left.row_bytes(), left.swizzle(), left.atom_bytes());
    const std::uint64_t b = ptx::describe(queries, right.swizzle(), right.atom_bytes());
    ptx::pin(s);
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < P.dim / 16; ++i) {
      ptx::wgmma<P.tile.q>::template shared<T, 0>(s, ptx::advance(a, left.column_step(i)),
                                                  ptx::advance(b, right.column_step(i)), i != 0);
    }
    ptx::wgmma_commit();
  }

  /// dv += weightsᵀ · dout, or dk += gradientsᵀ · q, asynchronously.
  __device__ void add_product(float (&sums)[sum_count], pairs& left,
                              const std::byte* queries) const {
    constexpr operand_layout right = P.q_layout();
    const std::uint64_t b =
        ptx::describe(queries, right.swizzle(), right.atom_bytes(), right.chunk_bytes());
    ptx::pin(left);
    ptx::pin(sums);
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < P.tile.q / 16; ++i) {
      ptx::wgmma<P.dim>::template registers<T, 1>(sums, left + 4 * i,
                                                  ptx::advance(b, right.row_step(i)), 1);
    }
    ptx::wgmma_commit();
  }

  /// Until both groups have left the gradients of the step before; then both have multiplied by
  /// those that the next ones replace.
  __device__ void await_gradients() const {
    ptx::wait(smem_.ds_left[(steps_ - 1) % 3], (steps_ - 1) / 3 & 1);
  }

  /// dq = gradients · k of the step before, asynchronously: 64 queries × 64 columns a group.
  __device__ void multiply_by_keys(float (&dq)[32]) const {
    constexpr operand_layout left = P.ds_layout(), right = P.k_layout();
    const std::byte* const gradients = smem_.ds[(steps_ - 1) % 3];
    const std::uint64_t a = ptx::describe(gradients + row_share() * left.chunk_bytes(),
                                          left.swizzle(), left.atom_bytes(), left.chunk_bytes());
    const std::uint64_t b = ptx::describe(smem_.k + column_share() * right.chunk_bytes(),
                                          right.swizzle(), right.atom_bytes(), right.chunk_bytes());
    ptx::pin(dq);
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < P.tile.kv / 16; ++i) {
      ptx::wgmma<64>::template shared<T, 1, 1>(dq, ptx::advance(a, left.row_step(i)),
                                               ptx::advance(b, right.row_step(i)), i != 0);
    }
    ptx::wgmma_commit();
  }

  // dq's share: the group's own 64 queries, or its own 64 columns.
  static constexpr bool shares_rows = P.tile.q == 128;
  static_assert(shares_rows ? P.dim == 64 : P.tile.q == 64 && P.dim == 128);
  __device__ int row_share() const { return shares_rows ? group_ : 0; }
  __device__ int column_share() const { return shares_rows ? 0 : group_; }

  /// Adds dq of the step before to memory, in the portable kernel's order of places.
  __device__ void add_to_queries(const float (&dq)[32], int row) const {
    using like = sm80::backward_warps<sm80::backward_shape(P.dim, P.dim)>;
    constexpr int groups = 2 * like::q_columns; // of 8 columns, of a warp there
    const int strip = 4 * row_share() + warp_;  // of 16 queries
    const int there = strip % like::q_q + like::q_q * (8 * column_share() / groups);
    // In bytes, unsigned, and what is the same for the warp first: two registers, not four.
    const auto place = 16 * static_cast<std::uint32_t>(strip / like::q_q * groups * like::threads +
                                                       32 * there + lane_here());
    const std::uint64_t tile =
        reinterpret_cast<std::uint64_t>(args_.dq_sums) +
        std::uint64_t{static_cast<std::uint32_t>(row)} * (sizeof(float) * P.tile.q * P.dim);
    float* const sums = reinterpret_cast<float*>(tile + place);
    const std::uint32_t step = steps_ - 1;
    turn_barriers& turn = smem_.turns[group_][step % 2];
    if (args_.ordered) ptx::wait(turn.taken, step / 2 & 1);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      ptx::add_to_global(sums + 4 * (i % groups * like::threads + 32 * like::q_q * (i / groups)),
                         dq + 4 * i);
    }
    if (!args_.ordered) return;
    __syncwarp();
    if (ptx::elected()) ptx::arrive(turn.added);
  }

  /// What the thread's queries have in `rows`, in pairs.
  __device__ void load_rows(row_values& values, const float* rows) const {
#pragma unroll
    for (int g = 0; g < P.tile.q / 8; ++g) {
      const float2 two = *reinterpret_cast<const float2*>(rows + 8 * g + 2 * (lane() % 4));
      values[2 * g] = two.x;
      values[2 * g + 1] = two.y;
    }
  }
  /// Which of them score i's query has.
  static constexpr int row_value(int i) { return i / 4 * 2 + i % 2; }

  /// Products become weights and gradients, by the modifier.
  template <class Kept>
  __device__ void modify(float (&p)[score_count], float (&ds)[score_count], const row_values& lse2,
                         const float* delta, const step_note& note, const Kept& kept) const {
    const auto score = score_at(args_.score, note.batch, note.head);
    const int first_q = note.q_tile * P.tile.q + fragment_layout::first_column(lane());
    const int first_kv = first_key(note) + fragment_layout::first_row(lane());
#pragma unroll
    for (int i = 0; i < score_count; ++i) {
      int q = first_q + fragment_layout::column(i), kv = first_kv + 8 * fragment_layout::row(i);
      if constexpr (!std::is_same_v<Kept, all_kept>) { // tables must not be read past their ends
        q = min(q, args_.q_len - 1);
        kv = min(kv, args_.kv_len - 1);
      }
      const float row_delta = delta[fragment_layout::column(i) + 2 * (lane() % 4)];
      modify_pair<T>(args_.score, score, args_.scale, lse2[row_value(i)], row_delta, kept.has(i),
                     {note.batch, note.head, q, kv}, p[i], ds[i]);
    }
  }

  /// Asks the mask about the warp's scores: first about blocks of 16 × 16, a lane a block.
  __device__ kept_words look_at_scores(const step_note& note) const {
    const mask_question question{args_};
    const int q = note.q_tile * P.tile.q, kv = first_key(note);
    const verdict v = lane() < blocks ? block_verdict(question, note.batch, note.head,
                                                      q + 16 * lane(), 16, kv, 16)
                                      : verdict::none;
    const std::uint32_t all = __ballot_sync(~0u, v == verdict::all);
    kept_words kept;
#pragma unroll
    for (int w = 0; w < static_cast<int>(sizeof(kept.word) / 4); ++w) kept.word[w] = spread(all, w);
#pragma unroll 1
    for (std::uint32_t some = __ballot_sync(~0u, v == verdict::some); some != 0; some &= some - 1) {
      const int block = __ffs(some) - 1;
      const std::uint32_t bits = kept_elements<true>(
          question, {note.batch, note.head, q + 16 * block + fragment_layout::first_column(lane()),
                     kv + fragment_layout::first_row(lane())});
#pragma unroll
      for (int w = 0; w < static_cast<int>(sizeof(kept.word) / 4); ++w) {
        kept.word[w] |= (block / 4 == w ? bits : 0) << block % 4 * 8;
      }
    }
    return kept;
  }

  /// Rounds and packs to pairs, four of which are an A operand of 16 queries.
  static __device__ void round(const float (&value)[score_count], pairs& out) {
#pragma unroll
    for (int i = 0; i < score_count / 2; ++i) out[i] = ptx::pack<T>(value[2 * i], value[2 * i + 1]);
  }

  static __device__ float weight(const pairs& p, int i) {
    float low, high;
    ptx::unpack<T>(p[i / 2], low, high);
    return i % 2 == 0 ? low : high;
  }

  /// Writes gradients to shared memory for dq.
  __device__ void leave(const pairs& d) const {
    const auto shared = static_cast<std::uint32_t>(__cvta_generic_to_shared(smem_.ds[steps_ % 3]));
    const int here = lane_here(), row = 64 * group_ + 16 * warp_ + here % 16;
#pragma unroll
    for (int i = 0; i < blocks; ++i) {
      const std::uint32_t word[4] = {d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]};
      ptx::store_matrices(shared + P.ds_layout().offset(row, 2 * i + here / 16), word);
    }
  }

  /// Lets both groups multiply by them.
  __device__ void show_gradients() const {
    ::cuda::ptx::fence_proxy_async(::cuda::ptx::space_shared);
    __syncwarp();
    if (ptx::elected()) ptx::arrive(smem_.ds_left[steps_ % 3]);
  }

  /// A unit's dv and dk; what was in the registers is lost.
  __device__ void store(const step_note& unit, float (&dk)[sum_count],
                        float (&dv)[sum_count]) const {
    const auto usual = [](const row_store& to) { return !to.is_float && to.vectors; };
    if (usual(args_.dk) && usual(args_.dv)) { // has code of its own, as in the portable kernel
      const auto rows_of = [&](const row_store& to) {
        return [&](int head, int row, int column, const float(&value)[8]) {
          store_quad_vectors<T>(to, unit.batch, head, row, column, value);
        };
      };
      each_row(unit, dv, 1, rows_of(args_.dv));
      each_row(unit, dk, args_.scale, rows_of(args_.dk));
      return;
    }
#pragma unroll 1 // the code for any tensor is long
    for (int pass = 0; pass < 2; ++pass) {
      const row_store& to = pass == 0 ? args_.dv : args_.dk;
      each_row(unit, dv, pass == 0 ? 1 : args_.scale,
               [&](int head, int row, int column, const float(&value)[8]) {
                 store_quad<T>(to, unit.batch, head, row, column, value);
               });
#pragma unroll
      for (int i = 0; i < sum_count; ++i) dv[i] = dk[i];
    }
  }

  template <class Store>
  __device__ void each_row(const step_note& unit, const float (&sums)[sum_count], float scale,
                           const Store& store) const {
    const int head = unit.head / args_.group;
    const int row = first_key(unit) + fragment_layout::first_row(lane_here());
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int n = 0; n < P.dim / 32; ++n) {
        float value[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] = sums[16 * n + 4 * (i / 2) + 2 * r + i % 2] * scale;
        store(head, row + 8 * r, 32 * n, value);
      }
    }
  }

  /// The first key of the warp.
  __device__ int first_key(const step_note& note) const {
    return note.kv_tile * P.tile.kv + 64 * group_ + 16 * warp_;
  }
  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  /// The same, unknown until here: what follows from it is not kept in registers, which are short.
  static __device__ int lane_here() {
    int lane = backward_consumer::lane();
    asm volatile("" : "+r"(lane));
    return lane;
  }
  __device__ void release(slot_barriers& slot) const {
    if (ptx::elected()) ptx::arrive(slot.empty);
  }

  const Arguments& args_;
  storage& smem_;
  const int group_, warp_;
  ring_cursor<P.stages> cursor_; ///< of queries and notes
  std::uint32_t steps_ = 0;      ///< of tiles of queries, all units'
};

} // namespace maskring::cuda::detail::sm90
