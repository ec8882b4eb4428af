// SPDX-License-Identifier: Apache-2.0
// The Hopper backward kernel's producer group: one thread loads, two warps keep turns.
#pragma once

#include <maskring/cuda/detail/backward_unit.cuh>
#include <maskring/cuda/detail/dq_order.cuh>
#include <maskring/cuda/detail/ptx/tensor_map.cuh>
#include <maskring/cuda/detail/sm90/backward_policy.cuh>
#include <maskring/cuda/detail/sm90/producer.cuh>
#include <maskring/cuda/detail/tile_walk.cuh>

namespace maskring::cuda::detail::sm90 {

/// One thread: takes units from the grid's counter and loads each one's keys, values, and all the
/// queries that its column of the block map names, from the last tile to the first, head by head.
template <class Arguments>
__device__ void load_unit_by_unit(const Arguments& args,
                                  backward_storage<Arguments::policy>& smem) {
  constexpr backward_policy P = Arguments::policy;
  ring_cursor<P.stages> q_cursor, o_cursor;
  const auto open = [&]() -> slot_barriers& {
    slot_barriers& slot = smem.q_slots[q_cursor.stage()];
    slot.wait_empty(q_cursor.round());
    return slot;
  };
  ring_cursor<notes_ahead> tellings;
  const auto tell = [&](const step_note& note) { // who keeps turns
    if (!args.ordered) return;
    slot_barriers& slot = smem.turn_note_slots[tellings.stage()];
    slot.wait_empty(tellings.round());
    smem.turn_notes[tellings.stage()] = note;
    ptx::arrive(slot.full);
    tellings.advance();
  };
  for (std::uint32_t round = 0;; ++round) {
    const int index = atomicAdd(args.next_unit, 1);
    if (index >= args.layers * args.kv_tiles) break;
    const auto unit = backward_unit::of(index, args.kv_tiles, args.layers, args.kv_heads);
    const auto load_keys = [&](slot_barriers& slot, std::byte* to, const CUtensorMap& from) {
      slot.wait_empty(round);
      ptx::arrive_expecting(slot.full, P.k_layout().bytes());
      load_tile<P.k_layout()>(to, from, slot.full, unit.kv_tile * P.tile.kv, unit.kv_head,
                              unit.batch);
    };
    load_keys(smem.k_slot, smem.k, args.k);
    load_keys(smem.v_slot, smem.v, args.v);
    const bool last_keys = (unit.kv_tile + 1) * P.tile.kv > args.kv_len;
    for (int head = unit.kv_head * args.group; head < (unit.kv_head + 1) * args.group; ++head) {
      const index_t column =
          args.map.column(unit.batch, head, unit.kv_tile * P.tile.kv / args.map.tile.kv);
      detail::tile_walk<direction::down> walk{args.map.columns, column, args.q_tiles_per_map_tile,
                                              args.q_tiles};
      for (; !walk.done(); walk.advance()) {
        const int tile = walk.tile();
        const bool masked = walk.partial() || last_keys ||
                            (Arguments::has_score && (tile + 1) * P.tile.q > args.q_len);
        const int row = (unit.batch * args.heads + head) * args.q_tiles + tile;
        const auto load = [&](slot_barriers& slot, std::byte* to, const CUtensorMap& from,
                              float* rows_to, const float* rows) {
          ptx::arrive_expecting(slot.full, P.q_layout().bytes() + 4 * P.tile.q);
          load_tile<P.q_layout()>(to, from, slot.full, tile * P.tile.q, head, unit.batch);
          ::cuda::ptx::cp_async_bulk(::cuda::ptx::space_cluster, ::cuda::ptx::space_global, rows_to,
                                     rows + index_t{row} * P.tile.q, 4 * P.tile.q, &slot.full);
        };
        slot_barriers& slot = open();
        const step_note note{step_head::of(masked ? step_head::partial : step_head::full, row),
                             tile, head, unit.kv_tile, unit.batch};
        smem.note_at(q_cursor.index) = note;
        tell(note);
        load(slot, smem.q[q_cursor.stage()], args.q, smem.lse2[q_cursor.stage()], args.lse2);
        q_cursor.advance();
        const int stage = o_cursor.stage();
        smem.o_slots[stage].wait_empty(o_cursor.round());
        load(smem.o_slots[stage], smem.o[stage], args.dout, smem.delta[stage], args.delta);
        o_cursor.advance();
      }
    }
    slot_barriers& slot = open();
    smem.note_at(q_cursor.index) = {step_head::of(step_head::end_of_unit), 0,
                                    unit.kv_head * args.group, unit.kv_tile, unit.batch};
    ptx::arrive(slot.full);
    q_cursor.advance();
  }
  slot_barriers& slot = open();
  const step_note end{step_head::of(step_head::end_of_work)};
  smem.note_at(q_cursor.index) = end;
  ptx::arrive(slot.full);
  tell(end);
}

/// Calls `use` for each step, with its note and its number. By one warp.
template <class Arguments, class Use>
__device__ void each_step(backward_storage<Arguments::policy>& smem, const Use& use) {
  for (ring_cursor<notes_ahead> cursor;; cursor.advance()) {
    slot_barriers& slot = smem.turn_note_slots[cursor.stage()];
    slot.wait_full(cursor.round());
    const step_note note =
        backward_storage<Arguments::policy>::share(smem.turn_notes[cursor.stage()]);
    if (threadIdx.x % 32 == 0) ptx::arrive(slot.empty);
    if (note.what() == step_head::end_of_work) return;
    use(note, cursor.index);
    __syncwarp();
  }
}

/// A warp: waits in the consumers' place until it is this block's turn to add to a query tile. Each
/// group of consumers has a part of dq, and turns, of its own; a lane waits for each.
template <class Arguments>
__device__ void await_turns(const Arguments& args, backward_storage<Arguments::policy>& smem) {
  constexpr backward_policy P = Arguments::policy;
  each_step<Arguments>(smem, [&](const step_note& note, std::uint32_t step) {
    const int group = static_cast<int>(threadIdx.x) % 32 % P.consumers;
    const int* const counter = args.dq_done + index_t{note.row()} * P.consumers + group;
    dq_turn turn;
    turn.begin(args.map, note.batch, note.head, note.q_tile * P.tile.q / args.map.tile.q);
    turn.look(args.map, counter);
    const int before = turn.before(args.map, note.kv_tile, args.kv_tiles_per_map_tile);
    if (threadIdx.x % 32 < P.consumers) {
      turn.wait(counter, before);
      turn_barriers& here = smem.turns[group][step % 2];
      ptx::wait(here.passed_on, (step / 2 & 1) ^ 1);
      ptx::arrive(here.taken);
    }
  });
}

/// A warp: passes the turn on when a group has added, so that nobody else waits for the fence
/// before that.
template <class Arguments>
__device__ void pass_turns_on(const Arguments& args, backward_storage<Arguments::policy>& smem) {
  constexpr backward_policy P = Arguments::policy;
  each_step<Arguments>(smem, [&](const step_note& note, std::uint32_t step) {
    const int group = static_cast<int>(threadIdx.x) % 32;
    if (group < P.consumers) {
      turn_barriers& here = smem.turns[group][step % 2];
      ptx::wait(here.added, step / 2 & 1);
      dq_turn::pass_on(args.dq_done + index_t{note.row()} * P.consumers + group, note.kv_tile);
      ptx::arrive(here.passed_on);
    }
  });
}

} // namespace maskring::cuda::detail::sm90
