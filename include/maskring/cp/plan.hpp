// SPDX-License-Identifier: Apache-2.0
// Which keys each rank needs of each shard, known before anything moves.
#pragma once

#include <maskring/cp/detail/needed.hpp>
#include <maskring/cp/fingerprint.hpp>

#include <vector>

namespace maskring::cp {

/// The work and traffic of all ranks together that a plan saves. Bytes count keys and values on
/// their way out and, in the backward pass, also the fp32 gradients on their way home.
struct savings {
  index_t steps = 0, possible_steps = 0;
  index_t forward_bytes = 0, unplanned_forward_bytes = 0;
  index_t backward_bytes = 0, unplanned_backward_bytes = 0;
};

/// The needed keys of every (rank, shard), and the road that the shards take round the ring.
///
/// Found from verdicts over (queries of a rank × keys of a shard) rectangles: O(ranks² · log keys)
/// of them, none of which looks at elements. `none` verdicts are proofs, so what a plan leaves out is
/// never missed; a mask that can only be asked about elements needs everything. Every rank computes
/// the same plan.
///
/// At step t of a ring, rank r works on shard (r − t) mod ranks: at step 0 on its own, and then each
/// shard moves on from rank to rank, shrinking to what the ranks ahead of it still need.
class plan {
public:
  /// @param shape gives the batch entries and query heads that the mask is asked about.
  template <mask_mod Mask, shard::layout QLayout, shard::layout KvLayout>
  plan(const Mask& mask, const shape& sizes, const shards<QLayout, KvLayout>& split)
      : ranks_{split.q.ranks()}, needed_(cells()), forwarded_(cells()) {
    const range batch{0, sizes.batch - 1}, heads{0, sizes.q_heads - 1};
    for (int rank = 0; rank < ranks_; ++rank) {
      q_sizes_.push_back(split.q.size(rank));
      kv_sizes_.push_back(split.kv.size(rank));
    }
    for (int rank = 0; rank < ranks_; ++rank) {
      for (int shard = 0; shard < ranks_; ++shard) {
        if (sizes.batch * sizes.q_heads * q_size(rank) * kv_size(shard) == 0) continue;
        needed_[cell(rank, shard)] = detail::needed_keys(
            shard::rewrite(mask, split.q.map(rank), split.kv.map(shard)), batch, heads,
            q_size(rank), kv_size(shard));
      }
    }
    for (int shard = 0; shard < ranks_; ++shard) {
      interval ahead;
      for (int step = ranks_ - 1; step > 0; --step) {
        ahead = hull(ahead, needed((shard + step) % ranks_, shard));
        forwarded_[cell(shard, step - 1)] = ahead;
      }
    }
    cp::fingerprint sum;
    sum.add(mask_fingerprint(mask, sizes, split.q.sequence(), split.kv.sequence()));
    for (const interval& i : needed_) {
      sum.add(static_cast<std::uint64_t>(i.lo)).add(static_cast<std::uint64_t>(i.hi));
    }
    fingerprint_ = sum.value();
  }

  int ranks() const { return ranks_; }
  index_t q_size(int rank) const { return q_sizes_[static_cast<std::size_t>(rank)]; }
  index_t kv_size(int shard) const { return kv_sizes_[static_cast<std::size_t>(shard)]; }

  /// The local key positions of `shard` that some query of `rank` sees; their hull.
  const interval& needed(int rank, int shard) const { return needed_[cell(rank, shard)]; }

  /// The shard that `rank` works on at `step`.
  int shard_at(int rank, int step) const { return (rank - step + ranks_) % ranks_; }

  /// What holder shard + step passes on of the shard after `step`: the hull of what is needed later.
  const interval& forwarded(int shard, int step) const { return forwarded_[cell(shard, step)]; }

  /// Of the mask (cp::mask_fingerprint) and of what is needed.
  std::uint64_t fingerprint() const { return fingerprint_; }

  /// Savings of the ring driver. An unplanned ring computes every step, passes whole shards on
  /// ranks − 1 times, and returns each contribution to their gradients whole.
  /// @param element_bytes of the keys and values.
  savings ring_savings(const shape& sizes, std::size_t element_bytes) const {
    index_t moved = 0;
    for (const interval& i : forwarded_) moved += i.size();
    return price(moved, sizes, element_bytes);
  }

  /// Savings of the all-gather driver, beside one that gathers and reduces whole shards.
  savings all_gather_savings(const shape& sizes, std::size_t element_bytes) const {
    return price(returned(), sizes, element_bytes);
  }

private:
  std::size_t cells() const {
    return static_cast<std::size_t>(ranks_) * static_cast<std::size_t>(ranks_);
  }
  std::size_t cell(int row, int column) const {
    return static_cast<std::size_t>(row) * static_cast<std::size_t>(ranks_) +
           static_cast<std::size_t>(column);
  }

  /// Keys whose gradients return to another rank.
  index_t returned() const {
    index_t sum = 0;
    for (int rank = 0; rank < ranks_; ++rank) {
      for (int shard = 0; shard < ranks_; ++shard) {
        if (shard != rank) sum += needed(rank, shard).size();
      }
    }
    return sum;
  }

  savings price(index_t moved, const shape& sizes, std::size_t element_bytes) const {
    savings out;
    index_t keys = 0;
    for (int rank = 0; rank < ranks_; ++rank) {
      keys += kv_size(rank);
      for (int shard = 0; shard < ranks_; ++shard) {
        out.steps += !needed(rank, shard).empty();
        out.possible_steps += q_size(rank) > 0 && kv_size(shard) > 0;
      }
    }
    const index_t numbers = sizes.batch * sizes.kv_heads * (sizes.qk_dim + sizes.v_dim);
    const index_t there = numbers * static_cast<index_t>(element_bytes);
    const index_t back = numbers * static_cast<index_t>(sizeof(float));
    const index_t all = keys * (ranks_ - 1);
    out.forward_bytes = moved * there;
    out.unplanned_forward_bytes = all * there;
    out.backward_bytes = moved * there + returned() * back;
    out.unplanned_backward_bytes = all * (there + back);
    return out;
  }

  int ranks_;
  std::vector<index_t> q_sizes_, kv_sizes_;
  std::vector<interval> needed_, forwarded_;
  std::uint64_t fingerprint_ = 0;
};

}  // namespace maskring::cp
