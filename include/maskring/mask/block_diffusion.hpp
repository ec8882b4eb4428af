// SPDX-License-Identifier: Apache-2.0
// Block diffusion language models: a noised copy of the sequence in front of a clean one.
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/mask/concepts.hpp>
#include <maskring/mask/detail/pieces.hpp>

namespace maskring::mask {

/// On 2·length tokens, the first half noised and the second clean, in blocks of `block` tokens:
/// noised blocks see themselves and earlier clean blocks, clean blocks themselves and earlier clean
/// ones (M. Arriola et al., Block Diffusion, 2025). With bq = (q % length) // block, bk likewise:
/// (bq = bk, both in one half) or (bq > bk, q noised, kv clean) or (bq ≥ bk, both clean).
class block_diffusion {
public:
  /// @throws std::invalid_argument if length < 1 or block < 1.
  constexpr block_diffusion(int length, int block) : length_{length}, block_{block} {
    maskring::detail::require(length >= 1, "block_diffusion: length is ", length,
                              ", expected 1 or more");
    maskring::detail::require(block >= 1, "block_diffusion: block is ", block,
                              ", expected 1 or more");
  }

  constexpr bool operator()(int, int, int q, int kv) const {
    const bool q_noised = q < length_, kv_noised = kv < length_;
    const int bq = floor_div(q_noised ? q : q - length_, block_);
    const int bk = floor_div(kv_noised ? kv : kv - length_, block_);
    return q_noised ? (kv_noised ? bq == bk : bq > bk) : !kv_noised && bq >= bk;
  }

  constexpr kleene operator()(range, range, range q, range kv) const {
    const detail::halves queries{q, length_}, keys{kv, length_};
    const bool noised_queries = !detail::is_empty(queries.below);
    const bool clean_queries = !detail::is_empty(queries.from);
    const bool noised_keys = !detail::is_empty(keys.below);
    const bool clean_keys = !detail::is_empty(keys.from);
    detail::joined seen;
    if (clean_queries && noised_keys) seen.add(false);
    if (noised_queries && clean_keys) {
      seen.add(floor_div(queries.below, block_) > block_of_clean(keys.from));
    }
    if (clean_queries && clean_keys) {
      seen.add(block_of_clean(queries.from) >= block_of_clean(keys.from));
    }
    if (noised_queries && noised_keys && !seen.mixed()) {
      seen.add(same_block(queries.below, keys.below));
    }
    return seen.result(detail::joint_depends(q, kv));
  }
  friend constexpr bool operator==(block_diffusion, block_diffusion) = default;

private:
  constexpr range block_of_clean(range i) const { return floor_div(i - length_, block_); }

  // Whether floor_div(q, block) = floor_div(kv, block). A stride above the block length leaves
  // blocks out, so there the queries are taken one by one; few, unless a coarse answer does
  // (`some`).
  constexpr kleene same_block(range q, range kv) const {
    const range bq = floor_div(q, block_), bk = floor_div(kv, block_);
    if ((q.step <= block_ && kv.step <= block_) || bq.hi < bk.lo || bk.hi < bq.lo) {
      return range{bq.lo, bq.hi} == range{bk.lo, bk.hi};
    }
    constexpr int most = 512;
    const range near = detail::clip(q, bk.lo * block_, (bk.hi + 1) * block_);
    int asked = 0;
    for (index_t i = near.lo; i <= near.hi; i += near.is_point() ? 1 : near.step) {
      if (++asked > most) return verdict::some;
      const index_t start = floor_div(i, index_t{block_}) * block_;
      if (!detail::is_empty(detail::clip(kv, start, start + block_))) {
        return bq.is_point() && bk.is_point() ? verdict::all : verdict::some;
      }
    }
    return verdict::none;
  }

  int length_, block_;
};

} // namespace maskring::mask
