// SPDX-License-Identifier: Apache-2.0
// What the steps of a ring's passes have in common: masks, block maps and queries of each.
#pragma once

#include <maskring/cp/detail/rotation.hpp>
#include <maskring/cp/detail/schedule.hpp>
#include <maskring/shard/subdivided.hpp>

#include <map>
#include <tuple>

namespace maskring::cp::detail {

template <class Comm, class QLayout, class KvLayout, class Mask, class Score>
class ring_steps : public driver<Comm, QLayout, KvLayout, Mask, Score> {
  using base = driver<Comm, QLayout, KvLayout, Mask, Score>;
  using query_map = decltype(std::declval<const QLayout&>().map(0));
  using key_map = decltype(std::declval<const KvLayout&>().map(0));

protected:
  static constexpr const char* name = "cp::ring";

  template <class MakePlan>
  ring_steps(Comm& comm, const shape& sizes, const shards<QLayout, KvLayout>& split,
             const Mask& mask, const Score& score, const options& opt, MakePlan make_plan)
      : base{name, comm, sizes, split, mask, score, opt, make_plan},
        schedule_{this->plan_, comm.rank(), max(1, opt.tile.q)} {}

  template <class V>
  static V rows_of(const V& tensor, const interval& part) {
    return tensor ? tensor.slice(2, part.lo, part.size()) : tensor;
  }
  static carried rows_of(const carried& state, const interval& part) {
    return {rows_of(state.out, part), rows_of(state.lse, part)};
  }

  /// The mask and the score modifier of some of the rank's queries and of the keys of a step's
  /// shard.
  auto mask_at(int step, const interval& queries, const interval& keys) const {
    return shard::rewrite(this->mask_, queries_from(queries), keys_from(step, keys));
  }
  auto score_at(int step, const interval& queries, const interval& keys) const {
    return shard::rewrite(this->score_, queries_from(queries), keys_from(step, keys));
  }
  kept_maps& maps_at(int step, const interval& queries, const interval& keys) {
    return maps_[{step, queries.lo, queries.hi, keys.lo, keys.hi}];
  }
  map_shape lengths_of(const interval& queries, const interval& keys) const {
    return {this->sizes_.batch, this->sizes_.q_heads, queries.size(), keys.size()};
  }

  schedule schedule_;
  rotation_memory<Comm> keys_, values_;
  home_memory<Comm> home_;

private:
  auto queries_from(const interval& queries) const {
    return shard::from_position<query_map>{this->split_.q.map(this->rank()),
                                           static_cast<int>(queries.lo)};
  }
  auto keys_from(int step, const interval& keys) const {
    return shard::from_position<key_map>{
        this->split_.kv.map(this->plan_.shard_at(this->rank(), step)), static_cast<int>(keys.lo)};
  }

  std::map<std::tuple<int, index_t, index_t, index_t, index_t>, kept_maps> maps_;
};

} // namespace maskring::cp::detail
