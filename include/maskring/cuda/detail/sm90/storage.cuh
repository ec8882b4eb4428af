// SPDX-License-Identifier: Apache-2.0
// Shared memory of the Hopper forward kernel, its barriers, and walking its stages.
#pragma once

#include <maskring/cuda/detail/ptx/mbarrier.cuh>
#include <maskring/cuda/detail/sm90/policy.cuh>
#include <maskring/cuda/detail/work_order.hpp>

#include <cuda/ptx>

#include <cstddef>
#include <cstdint>

namespace maskring::cuda::detail::sm90 {

/// What the producer says of a key tile, next to its data.
struct tile_note {
  std::uint32_t bits; ///< tile · 4 + last · 2 + partial

  static __device__ tile_note of(int tile, bool last, bool partial) {
    return {static_cast<std::uint32_t>(tile) * 4 + (last ? 2u : 0u) + (partial ? 1u : 0u)};
  }
  __device__ int tile() const { return static_cast<int>(bits >> 2); }
  __device__ bool last() const { return (bits & 2) != 0; }
  __device__ bool partial() const { return (bits & 1) != 0; }
};

/// A slot that one side fills and the other empties.
struct slot_barriers {
  std::uint64_t full, empty;

  __device__ void init(int fillers, int drainers) {
    ::cuda::ptx::mbarrier_init(&full, static_cast<std::uint32_t>(fillers));
    ::cuda::ptx::mbarrier_init(&empty, static_cast<std::uint32_t>(drainers));
  }
  // Round r of a slot is filled after round r − 1 was emptied; before round 0 it counts as emptied.
  __device__ void wait_full(std::uint32_t round) { ptx::wait(full, round & 1); }
  __device__ bool is_full(std::uint32_t round) { return ptx::completed(full, round & 1); }
  __device__ void wait_empty(std::uint32_t round) { ptx::wait(empty, (round & 1) ^ 1); }
};

/// Counts through a ring's stages; one register, for the producer has few.
template <int Stages>
struct ring_cursor {
  std::uint32_t index = 0;

  __device__ int stage() const { return static_cast<int>(index % Stages); }
  __device__ std::uint32_t round() const { return index / Stages; }
  __device__ void advance() { ++index; }
};

inline constexpr int judges = 2; ///< warps of the producer's group that have nothing else to do
inline constexpr int first_judge = 2;   ///< the number of the first one's warp
inline constexpr int blocks_judged = 2; ///< partial blocks of a strip whose elements judges look at

/// What the judges find of a partial tile, for each strip of 16 queries (a consumer warp's rows)
/// and its blocks of 16 keys.
template <forward_policy P>
struct block_verdicts {
  static constexpr int strips = P.tile.q / 16;
  static constexpr int blocks = P.tile.kv / 16;             ///< of a strip
  static constexpr int columns = P.tile.kv <= 128 ? 8 : 16; ///< bits of a strip, one to a block
  static constexpr std::uint32_t every_block = (1u << blocks) - 1;
  static constexpr int words = strips * columns / 32;
  static constexpr int kept_words = (blocks + 3) / 4;
  std::uint32_t some[words]; ///< blocks that consumers evaluate
  std::uint32_t all[words];  ///< blocks that are all kept
  /// Of strips that are not: 8 bits a block for the elements of each lane, without `some`.
  std::uint32_t kept[P.judges_elements() ? strips : 1][kept_words][32];

  /// A strip's bits of `some` or `all`.
  static __device__ std::uint32_t row(const std::uint32_t (&bits)[words], int strip) {
    return bits[strip * columns / 32] >> strip * columns % 32 & every_block;
  }
};

template <forward_policy P>
struct forward_storage {
  alignas(1024) std::byte q[P.query_stages][query_layout(P).bytes()];
  alignas(1024) std::byte k[P.stages][key_layout(P).bytes()];
  alignas(1024) std::byte v[P.stages][value_layout(P).bytes()];
  slot_barriers work_slot;
  std::uint64_t item_ending; ///< the producer reached an item's last tile: take the next one
  slot_barriers q_slots[P.query_stages];
  slot_barriers k_slots[P.stages], v_slots[P.stages];
  slot_barriers verdict_slots[P.stages];
  block_verdicts<P> verdicts[P.stages]; ///< of the next partial tiles
  tile_note notes[P.stages];            ///< travel with the key tiles
  work_item work;

  /// By one thread, before the block's first barrier. Consumers and judges arrive once a warp,
  /// except where each of their lanes reads or writes for itself.
  __device__ void init() {
    constexpr int consumer_warps = 4 * P.consumers();
    work_slot.init(1, 32 * (consumer_warps + judges) + 1);
    ::cuda::ptx::mbarrier_init(&item_ending, 1);
    for (int s = 0; s < P.query_stages; ++s) q_slots[s].init(1, consumer_warps);
    for (int s = 0; s < P.stages; ++s) {
      k_slots[s].init(1, consumer_warps);
      v_slots[s].init(1, consumer_warps);
      verdict_slots[s].init(32 * judges, 32 * consumer_warps);
    }
    ::cuda::ptx::fence_mbarrier_init(::cuda::ptx::sem_release, ::cuda::ptx::scope_cluster);
  }

  /// The next item, for all threads of a warp; each gives the slot back for itself. (Items that
  /// lane 0 reads and hands on make the whole kernel 5 % slower: the compiler then loses sight of
  /// what is the same in all lanes.)
  __device__ work_item take_work(std::uint32_t round) {
    work_slot.wait_full(round);
    const work_item item = work;
    ptx::arrive(work_slot.empty);
    return item;
  }
};

} // namespace maskring::cuda::detail::sm90
