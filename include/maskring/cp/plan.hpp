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

/// The needed keys of every (rank, shard), the queries that see them, and who hands them out.
///
/// Found from verdicts over (queries of a rank × keys of a shard) rectangles: O(ranks² · log keys)
/// of them, none of which looks at elements. `none` verdicts are proofs, so what a plan leaves out
/// is never missed; a mask that can only be asked about elements needs everything. Every rank
/// computes the same plan.
///
/// At step t of a ring, rank r works on shard (r − t) mod ranks: at step 0 on its own. It has the
/// keys that it needs from the rank before it, which worked on that shard a step earlier, if these
/// are among what that rank needed; otherwise from the shard's owner. So under a dense mask shards
/// go round from neighbour to neighbour, and no key is ever sent to a rank that does not need it.
class plan {
public:
  /// @param shape gives the batch entries and query heads that the mask is asked about.
  template <mask_mod Mask, shard::layout QLayout, shard::layout KvLayout>
  plan(const Mask& mask, const shape& sizes, const shards<QLayout, KvLayout>& split)
      : ranks_{split.q.ranks()}, needed_(cells()), queries_(cells()) {
    const range batch{0, sizes.batch - 1}, heads{0, sizes.q_heads - 1};
    for (int rank = 0; rank < ranks_; ++rank) {
      q_sizes_.push_back(split.q.size(rank));
      kv_sizes_.push_back(split.kv.size(rank));
    }
    for (int rank = 0; rank < ranks_; ++rank) {
      for (int shard = 0; shard < ranks_; ++shard) {
        if (sizes.batch * sizes.q_heads * q_size(rank) * kv_size(shard) == 0) continue;
        const auto local = shard::rewrite(mask, split.q.map(rank), split.kv.map(shard));
        interval& keys = needed_[cell(rank, shard)];
        keys = detail::needed_keys(local, batch, heads, q_size(rank), kv_size(shard));
        if (keys.empty()) continue;
        interval& seeing = queries_[cell(rank, shard)];
        seeing = detail::seeing_queries(local, batch, heads, q_size(rank), keys);
        if (seeing.empty()) keys = {}; // so it was shown after all
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

  /// The local query positions of `rank` that see some key of `shard`; their hull. Empty only where
  /// no key is needed.
  const interval& queries(int rank, int shard) const { return queries_[cell(rank, shard)]; }

  /// The shard that `rank` works on at `step`.
  int shard_at(int rank, int step) const { return (rank - step + ranks_) % ranks_; }

  /// The rank that sends `rank` what it needs of `shard` in a ring.
  int source(int rank, int shard) const {
    const int before = shard_at(rank, 1);
    return needed(before, shard).contains(needed(rank, shard)) ? before : shard;
  }

  /// Of the mask (cp::mask_fingerprint) and of what is needed.
  std::uint64_t fingerprint() const { return fingerprint_; }

  /// What the plan saves, in either driver. Without one, every step is computed, every shard is
  /// sent to ranks − 1 others, and as many contributions to its gradients return whole.
  /// @param element_bytes of the keys and values.
  savings saved(const shape& sizes, std::size_t element_bytes) const {
    savings out;
    index_t all = 0, sent = 0;
    for (int rank = 0; rank < ranks_; ++rank) {
      all += kv_size(rank) * (ranks_ - 1);
      for (int shard = 0; shard < ranks_; ++shard) {
        out.steps += !needed(rank, shard).empty();
        out.possible_steps += q_size(rank) > 0 && kv_size(shard) > 0;
        if (shard != rank) sent += needed(rank, shard).size();
      }
    }
    const index_t numbers = sizes.batch * sizes.kv_heads * (sizes.qk_dim + sizes.v_dim);
    const index_t there = numbers * static_cast<index_t>(element_bytes);
    const index_t back = numbers * static_cast<index_t>(sizeof(float));
    out.forward_bytes = sent * there;
    out.unplanned_forward_bytes = all * there;
    out.backward_bytes = sent * (there + back);
    out.unplanned_backward_bytes = all * (there + back);
    return out;
  }

private:
  std::size_t cells() const {
    return static_cast<std::size_t>(ranks_) * static_cast<std::size_t>(ranks_);
  }
  std::size_t cell(int row, int column) const {
    return static_cast<std::size_t>(row) * static_cast<std::size_t>(ranks_) +
           static_cast<std::size_t>(column);
  }

  int ranks_;
  std::vector<index_t> q_sizes_, kv_sizes_;
  std::vector<interval> needed_, queries_;
  std::uint64_t fingerprint_ = 0;
};

} // namespace maskring::cp
