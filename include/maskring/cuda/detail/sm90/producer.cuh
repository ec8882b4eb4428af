// SPDX-License-Identifier: Apache-2.0
// The Hopper forward kernel's producer warpgroup: one warp deals work, one feeds the copy engine.
#pragma once

#include <maskring/cuda/detail/ptx/tensor_map.cuh>
#include <maskring/cuda/detail/sm90/arguments.cuh>
#include <maskring/cuda/detail/sm90/tile_walk.cuh>

namespace maskring::cuda::detail::sm90 {

/// One thread: takes work from the grid's counter and hands it to producer and consumers.
///
/// It takes an item when the producer loads the last tile of the one before: early enough to read
/// the block map before anybody waits for it, and late enough that whichever block is free first
/// gets the longest item left.
template <class Arguments>
__device__ void schedule(const Arguments& args, forward_storage<Arguments::policy>& smem) {
  int index = static_cast<int>(blockIdx.x);
  for (std::uint32_t round = 0;; ++round) {
    const work_item item = args.order.item(index, args.map);
    smem.work_slot.wait_empty(round);
    smem.work = item;
    ptx::arrive(smem.work_slot.full);
    if (!item.valid()) return;
    ptx::wait(smem.item_ending, round & 1);
    const int taken = atomicAdd(args.next_work, 1);
    // Every item but each block's first, and one refusal a block, is taken from the counter.
    if (taken == args.order.count() - 1) *args.next_work = 0;
    index = taken + static_cast<int>(gridDim.x);
  }
}

template <operand_layout Layout>
__device__ void load_tile(std::byte* destination, const CUtensorMap& map, std::uint64_t& full,
                          int row, int head, int batch) {
#pragma unroll
  for (int c = 0; c < Layout.chunks(); ++c) {
    ptx::load_box(destination + c * Layout.chunk_bytes(), map, full, c * Layout.chunk_columns(),
                  row, head, batch);
  }
}

/// One thread: loads each item's queries and, tile by tile, keys and values; a tile's values follow
/// the next tile's keys, the order in which consumers use them.
template <class Arguments>
__device__ void produce(const Arguments& args, forward_storage<Arguments::policy>& smem) {
  constexpr forward_policy P = Arguments::policy;
  ring_cursor<P.stages> k_cursor, v_cursor;
  ring_cursor<P.query_stages> q_cursor;
  for (std::uint32_t work_round = 0;; ++work_round) {
    const work_item item = smem.take_work(work_round);
    if (!item.valid()) return;
    if (item.sees_nothing()) {
      ptx::arrive(smem.item_ending);
      continue;
    }

    const int kv_head = item.head / args.group;
    const auto load_k = [&](int tile, bool last, bool partial) {
      if (last) ptx::arrive(smem.item_ending);
      slot_barriers& slot = smem.k_slots[k_cursor.stage()];
      slot.wait_empty(k_cursor.round());
      smem.notes[k_cursor.stage()] = tile_note::of(tile, last, partial);
      ptx::arrive_expecting(slot.full, key_layout(P).bytes());
      load_tile<key_layout(P)>(smem.k[k_cursor.stage()], args.k, slot.full, tile * P.tile.kv,
                               kv_head, item.batch);
      k_cursor.advance();
    };
    const auto load_v = [&](int tile) {
      slot_barriers& slot = smem.v_slots[v_cursor.stage()];
      slot.wait_empty(v_cursor.round());
      ptx::arrive_expecting(slot.full, value_layout(P).bytes());
      load_tile<value_layout(P)>(smem.v[v_cursor.stage()], args.v, slot.full, tile * P.tile.kv,
                                 kv_head, item.batch);
      v_cursor.advance();
    };

    tile_walk walk{args, item, P.tile.kv};
    load_k(walk.tile(), walk.last(), walk.partial());
    slot_barriers& q_slot = smem.q_slots[q_cursor.stage()];
    q_slot.wait_empty(q_cursor.round());
    ptx::arrive_expecting(q_slot.full, query_layout(P).bytes());
    load_tile<query_layout(P)>(smem.q[q_cursor.stage()], args.q, q_slot.full,
                               item.q_tile * P.tile.q, item.head, item.batch);
    q_cursor.advance();
    int tile = walk.tile();
    while (!walk.last()) {
      walk.advance();
      load_k(walk.tile(), walk.last(), walk.partial());
      load_v(tile);
      tile = walk.tile();
    }
    load_v(tile);
  }
}

} // namespace maskring::cuda::detail::sm90
