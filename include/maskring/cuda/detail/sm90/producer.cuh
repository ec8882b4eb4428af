// SPDX-License-Identifier: Apache-2.0
// The Hopper forward kernel's producer warpgroup: one thread deals work and loads queries, one
// loads keys and values.
#pragma once

#include <maskring/cuda/detail/ptx/prefetch.cuh>
#include <maskring/cuda/detail/ptx/tensor_map.cuh>
#include <maskring/cuda/detail/sm90/arguments.cuh>
#include <maskring/cuda/detail/sm90/tile_walk.cuh>

namespace maskring::cuda::detail::sm90 {

template <operand_layout Layout>
__device__ void load_tile(std::byte* destination, const CUtensorMap& map, std::uint64_t& full,
                          int row, int head, int batch) {
#pragma unroll
  for (int c = 0; c < Layout.chunks(); ++c) {
    ptx::load_box(destination + c * Layout.chunk_bytes(), map, full, c * Layout.chunk_columns(),
                  row, head, batch);
  }
}

/// Learns what becomes of the item's rows; the state that they have so far comes to the L2 cache.
template <class Arguments>
__device__ void begin_state(const Arguments& args, work_item& item) {
  item.part = args.states.tiles[item.q_tile];
  if (item.idle()) item.last_run = item.first_run;
  const view<float, 4>& sums = args.states.sums;
  if (!item.continues() || sums.strides[2] != sums.extents[3]) return;
  const int first = item.q_tile * Arguments::policy.tile.q;
  const int rows = min(Arguments::policy.tile.q, args.q_len - first);
  ptx::prefetch_to_l2(&sums(item.batch, item.head, first, 0),
                      rows * static_cast<int>(sums.extents[3] * sizeof(float)));
}

/// One thread: takes work from the grid's counter, hands it to producer and consumers, and loads
/// its queries.
///
/// It takes an item when the producer loads the last keys of the one before: early enough to read
/// the block map before anybody waits for it, and late enough that whichever block is free first
/// gets the longest item left.
template <class Arguments>
__device__ void schedule(const Arguments& args, forward_storage<Arguments::policy>& smem) {
  constexpr forward_policy P = Arguments::policy;
  ring_cursor<P.query_stages> q_cursor;
  int index = static_cast<int>(blockIdx.x);
  for (std::uint32_t round = 0;; ++round) {
    work_item item = args.order.item(index, args.map);
    if constexpr (Arguments::carries) {
      if (item.valid()) begin_state(args, item);
    }
    smem.work_slot.wait_empty(round);
    smem.work = item;
    ptx::arrive(smem.work_slot.full);
    if (!item.valid()) return;
    if (!item.sees_nothing()) {
      slot_barriers& slot = smem.q_slots[q_cursor.stage()];
      slot.wait_empty(q_cursor.round());
      ptx::arrive_expecting(slot.full, query_layout(P).bytes());
      load_tile<query_layout(P)>(smem.q[q_cursor.stage()], args.q, slot.full,
                                 args.first_row(item.q_tile), item.head, item.batch);
      q_cursor.advance();
    }
    ptx::wait(smem.item_ending, round & 1);
    const int taken = atomicAdd(args.next_work, 1);
    // Every item but each block's first, and one refusal a block, is taken from the counter.
    if (taken == args.order.count() - 1) *args.next_work = 0;
    index = taken + static_cast<int>(gridDim.x);
  }
}

/// One thread: loads keys and values, tile by tile, all items as one stream; a tile's values follow
/// the next tile's keys, the order in which consumers use them.
template <class Arguments>
__device__ void produce(const Arguments& args, forward_storage<Arguments::policy>& smem) {
  constexpr forward_policy P = Arguments::policy;
  ring_cursor<P.stages> k_cursor, v_cursor;
  int kv_head = 0, batch = 0; // of the values that come next
  const auto load_v = [&] {
    if (v_cursor.index == k_cursor.index) return; // not before the first keys
    const int tile = smem.notes[ring_cursor<P.stages>{k_cursor.index - 1}.stage()].tile();
    slot_barriers& slot = smem.v_slots[v_cursor.stage()];
    slot.wait_empty(v_cursor.round());
    ptx::arrive_expecting(slot.full, value_layout(P).bytes());
    load_tile<value_layout(P)>(smem.v[v_cursor.stage()], args.v, slot.full, tile * P.tile.kv,
                               kv_head, batch);
    v_cursor.advance();
  };
  for (std::uint32_t work_round = 0;; ++work_round) {
    const work_item item = smem.take_work(work_round);
    if (!item.valid()) {
      load_v();
      return;
    }
    if (item.sees_nothing()) {
      ptx::arrive(smem.item_ending);
      continue;
    }
    for (tile_walk walk{args, item, P.tile.kv};; walk.advance()) {
      if (walk.last()) ptx::arrive(smem.item_ending);
      slot_barriers& slot = smem.k_slots[k_cursor.stage()];
      slot.wait_empty(k_cursor.round());
      smem.notes[k_cursor.stage()] = tile_note::of(walk.tile(), walk.last(), walk.partial());
      ptx::arrive_expecting(slot.full, key_layout(P).bytes());
      load_tile<key_layout(P)>(smem.k[k_cursor.stage()], args.k, slot.full, walk.tile() * P.tile.kv,
                               item.head / args.group, item.batch);
      load_v();
      k_cursor.advance();
      kv_head = item.head / args.group;
      batch = item.batch;
      if (walk.last()) break;
    }
  }
}

} // namespace maskring::cuda::detail::sm90
