// SPDX-License-Identifier: Apache-2.0
// Where a judge of the Hopper forward kernel is in its block's work.
#pragma once

#include <maskring/cuda/detail/sm90/arguments.cuh>
#include <maskring/cuda/detail/sm90/storage.cuh>
#include <maskring/cuda/detail/warp_words.cuh>

namespace maskring::cuda::detail::sm90 {

/// An item, and one of its partial tiles, which come in the order of tile_walk. Judges need their
/// registers for verdicts, so this takes one.
template <class Arguments>
class judge_place {
  static constexpr forward_policy P = Arguments::policy;

public:
  __device__ explicit judge_place(const Arguments& args) : args_{args} {}

  /// Goes to the first partial tile of the block's next item; false after the last item.
  __device__ bool take_item(forward_storage<P>& smem) {
    const int round = words_.get(work_round);
    const work_item item = smem.take_work(static_cast<std::uint32_t>(round));
    words_.set(work_round, round + 1);
    words_.set(batch_word, item.batch);
    words_.set(head_word, item.head);
    words_.set(q_tile, item.q_tile);
    words_.set(first_run, item.first_run);
    words_.set(run, item.last_run);
    words_.set(behind_first, 0);
    if (!item.valid()) return false;
    find_run();
    return true;
  }

  /// Whether the item has no more of them.
  __device__ bool done() const { return words_.get(kv_tile) < 0; }
  __device__ void advance() {
    words_.set(judged, words_.get(judged) + 1);
    words_.set(behind_first, 1);
    const int tile = words_.get(kv_tile);
    if (tile != words_.get(run_start)) {
      words_.set(kv_tile, tile - 1);
    } else {
      find_run();
    }
  }

  /// Whether it is the item's first one, which consumers wait for.
  __device__ bool at_first() const { return words_.get(behind_first) == 0; }

  __device__ int batch() const { return words_.get(batch_word); }
  __device__ int head() const { return words_.get(head_word); }
  __device__ int first_query() const { return args_.first_row(words_.get(q_tile)); }
  __device__ int first_key() const { return words_.get(kv_tile) * P.tile.kv; }
  /// Where the verdicts go.
  __device__ ring_cursor<P.stages> cursor() const {
    return {static_cast<std::uint32_t>(words_.get(judged))};
  }

private:
  enum word {
    work_round,
    judged,
    batch_word,
    head_word,
    q_tile,
    kv_tile,
    run_start,
    run,
    first_run,
    behind_first
  };

  /// Goes to the last tile of the next run that has a partial one.
  __device__ void find_run() {
    const int end = words_.get(first_run);
    int at = words_.get(run);
    int found = -1;
    while (found < 0 && at != end) {
      --at;
      const tile_run next = args_.map.rows.offsets == nullptr
                                ? tile_run{0, (args_.kv_len + P.tile.kv - 1) / P.tile.kv, false}
                                : args_.map.rows.runs[at];
      const int last = next.first + next.count() - 1;
      // Keys past the end must be masked, whatever the mask says of their tile.
      if (next.partial() || last == args_.kv_len / P.tile.kv) {
        found = last;
        words_.set(run_start, next.partial() ? next.first : last);
      }
    }
    words_.set(run, at);
    words_.set(kv_tile, found);
  }

  const Arguments& args_;
  warp_words words_;
};

} // namespace maskring::cuda::detail::sm90
