// SPDX-License-Identifier: Apache-2.0
// The shapes of the Hopper backward kernel, what it is told, and its shared memory.
#pragma once

#include <maskring/cuda/detail/ptx/elect.cuh>
#include <maskring/cuda/detail/sm80/backward_policy.cuh>
#include <maskring/cuda/detail/sm90/storage.cuh>

#include <cuda.h>

#include <cstddef>
#include <cstdint>

namespace maskring::cuda::detail::sm90 {

/// A shape of the backward kernel: two groups of consumer warps, 64 keys each. The tile and the
/// arrays in memory are those of the portable kernel of the same head dimension, so that both can
/// have a part in the same sums.
struct backward_policy {
  int dim = 128; ///< head dimension; smaller ones are filled with 0
  tile_shape tile{64, 128};
  int stages = 2; ///< tiles of queries and their output gradients held

  static constexpr int consumers = 2;
  static constexpr int threads = 128 * (consumers + 1);
  static constexpr int producer_registers = 24, consumer_registers = 240;

  constexpr operand_layout q_layout() const { return {tile.q, dim}; }  ///< output gradients too
  constexpr operand_layout k_layout() const { return {tile.kv, dim}; } ///< values too
  /// Gradients of scores, queries contiguous: as the threads have them.
  constexpr operand_layout ds_layout() const { return {tile.kv, tile.q}; }
  constexpr bool valid() const { return dim > 0; }
};

/// The shape for these head dimensions, or one that is not valid() if this kernel has none.
constexpr backward_policy backward_shape(int qk_dim, int v_dim) {
  const int larger = qk_dim > v_dim ? qk_dim : v_dim;
  if (larger > 128) return {0};
  const sm80::backward_policy like = sm80::backward_shape(qk_dim, v_dim);
  return {like.dim, like.tile};
}

/// What every step needs of a note.
struct step_head {
  enum kind : std::uint32_t {
    full,        ///< queries, all of whose pairs are visible
    partial,     ///< queries, some of whose pairs may be hidden
    end_of_unit, ///< none: the keys have met all their queries
    end_of_work
  };
  std::uint32_t bits; ///< row · 4 + kind

  static __device__ step_head of(kind what, int row = 0) {
    return {static_cast<std::uint32_t>(row) * 4 + what};
  }
  __device__ kind what() const { return static_cast<kind>(bits & 3); }
  /// Where the query tile's entry is in arrays [batch, head, q_tiles].
  __device__ int row() const { return static_cast<int>(bits >> 2); }
  __device__ bool has_queries() const { return what() < end_of_unit; }
};

/// What the producer says of the queries in a stage, or instead of queries.
struct step_note : step_head {
  int q_tile, head, kv_tile, batch;
};

/// A group's turn at a query tile's dq: taken, then its warps have added, then it is passed on.
struct turn_barriers {
  std::uint64_t taken, added, passed_on;

  __device__ void init(int warps) {
    ::cuda::ptx::mbarrier_init(&taken, 1);
    ::cuda::ptx::mbarrier_init(&added, static_cast<std::uint32_t>(warps));
    ::cuda::ptx::mbarrier_init(&passed_on, 1);
  }
};

inline constexpr int notes_ahead = 8;

template <backward_policy P>
struct backward_storage {
  alignas(1024) std::byte k[P.k_layout().bytes()];
  alignas(1024) std::byte v[P.k_layout().bytes()];
  alignas(1024) std::byte q[P.stages][P.q_layout().bytes()];
  alignas(1024) std::byte o[P.stages][P.q_layout().bytes()]; ///< output gradients
  /// Three: while a group multiplies by those of the step before, the other, which may be a step
  /// behind, does so by those before, and either writes the next.
  alignas(1024) std::byte ds[3][P.ds_layout().bytes()];
  alignas(16) float lse2[P.stages][P.tile.q];
  alignas(16) float delta[P.stages][P.tile.q];
  slot_barriers k_slot, v_slot;
  slot_barriers q_slots[P.stages], o_slots[P.stages];
  std::uint64_t ds_left[3];            ///< all warps have left theirs
  turn_barriers turns[P.consumers][2]; ///< of two steps
  slot_barriers turn_note_slots[notes_ahead];
  step_note turn_notes[notes_ahead]; ///< for who keeps turns, which may be late
  /// Travel with the queries; twice as many, so that one outlives its queries by a step.
  step_note notes[2 * P.stages];

  __device__ step_note& note_at(std::uint32_t index) { return notes[index % (2 * P.stages)]; }

  /// What the stage holds, for all lanes of a warp.
  __device__ step_head read_head(ring_cursor<P.stages> cursor) {
    q_slots[cursor.stage()].wait_full(cursor.round());
    return head_at(cursor.index);
  }
  __device__ step_head head_at(std::uint32_t index) {
    std::uint32_t bits = 0;
    if (ptx::elected()) bits = note_at(index).bits;
    return {__reduce_or_sync(~0u, bits)};
  }

  /// The rest.
  __device__ step_note read_note(ring_cursor<P.stages> cursor) {
    return share(note_at(cursor.index));
  }

  /// What one lane reads, for all lanes of a warp.
  static __device__ step_note share(const step_note& from) {
    step_note note{};
    if (ptx::elected()) note = from;
    note.bits = __reduce_or_sync(~0u, note.bits);
    for (int* word : {&note.q_tile, &note.head, &note.kv_tile, &note.batch}) {
      *word = static_cast<int>(__reduce_or_sync(~0u, static_cast<std::uint32_t>(*word)));
    }
    return note;
  }

  /// By one thread, before the block's first barrier. Consumers arrive once a warp, except where
  /// each of their lanes reads for itself: log-sum-exps and deltas.
  __device__ void init() {
    constexpr int consumer_warps = 4 * P.consumers;
    k_slot.init(1, consumer_warps);
    v_slot.init(1, consumer_warps);
    for (int s = 0; s < P.stages; ++s) {
      q_slots[s].init(1, 32 * consumer_warps);
      o_slots[s].init(1, 32 * consumer_warps);
    }
    for (auto& steps : turns) {
      for (turn_barriers& turn : steps) turn.init(consumer_warps / P.consumers);
    }
    for (slot_barriers& slot : turn_note_slots) slot.init(1, 2);
    for (std::uint64_t& left : ds_left) ::cuda::ptx::mbarrier_init(&left, consumer_warps);
    ::cuda::ptx::fence_mbarrier_init(::cuda::ptx::sem_release, ::cuda::ptx::scope_cluster);
  }
};

/// Everything one launch computes; see forward_arguments for why the policy is part of the type.
template <backward_policy P, class T, class Mask, class Score>
struct backward_arguments {
  static constexpr backward_policy policy = P;
  static constexpr bool has_score = !std::is_same_v<Score, maskring::score::none>;
  using input_type = T;

  CUtensorMap q, k, v, dout;
  row_store dk, dv;
  block_map_view map; ///< offsets null: every pair is visible
  Mask mask;
  Score score;
  float scale, unit; ///< `unit` of scores: scale, to the base of 2
  // These as in sm80::backward_arguments; but dq_done has an entry for each group of consumers.
  const float *lse2, *delta;
  float* dq_sums;
  int *dq_done, *next_unit;
  int layers, heads, kv_heads, group, q_len, kv_len, q_tiles, kv_tiles;
  int q_tiles_per_map_tile, kv_tiles_per_map_tile;
  bool ordered;
};

} // namespace maskring::cuda::detail::sm90
