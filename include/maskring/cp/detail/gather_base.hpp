// SPDX-License-Identifier: Apache-2.0
// What both ways to gather keys have in common: where keys stand, and the call over them.
#pragma once

#include <maskring/cp/detail/driver.hpp>
#include <maskring/cp/detail/gathered.hpp>

namespace maskring::cp::detail {

/// Whether the ranks can share one copy of all keys, and it takes no more than half of what copies
/// of the keys that each needs would.
template <class Comm>
bool keeps_one_copy(const Comm& comm, const cp::plan& plan) {
  if constexpr (comm::memory_sharing<Comm>) {
    index_t all = 0, needed = 0;
    for (int shard = 0; shard < plan.ranks(); ++shard) {
      all += plan.kv_size(shard);
      for (int rank = 0; rank < plan.ranks(); ++rank) needed += plan.needed(rank, shard).size();
    }
    return comm.shares_memory() && needed >= 2 * all;
  } else {
    return false;
  }
}

template <class Comm, class QLayout, class KvLayout, class Mask, class Score>
class gather_base : public driver<Comm, QLayout, KvLayout, Mask, Score> {
  using base = driver<Comm, QLayout, KvLayout, Mask, Score>;

protected:
  static constexpr const char* name = "cp::all_gather";

  template <class MakePlan>
  gather_base(Comm& comm, const shape& sizes, const shards<QLayout, KvLayout>& split,
              const Mask& mask, const Score& score, const options& opt, MakePlan make_plan)
      : base{name, comm, sizes, split, mask, score, opt, make_plan} {
    in_place_ = keeps_one_copy(comm, this->plan_);
    for (int shard = 0; shard < this->ranks(); ++shard) {
      const interval part = this->plan_.needed(this->rank(), shard);
      stretches_.push_back(stretches_of(this->split_.kv.map(shard), part));
      keys_needed_ += part.size();
    }
    keys_at_ = gathered_keys{stretches_, !in_place_};
  }

  auto local_mask() const {
    return shard::rewrite(this->mask_, this->split_.q.map(this->rank()), keys_at_.map());
  }
  auto local_score() const {
    return shard::rewrite(this->score_, this->split_.q.map(this->rank()), keys_at_.map());
  }
  template <class Exec, class T, class O, class LocalMask>
  const block_map_view& forward_map(const Exec& exec, const inputs<T>& in, const results<O>& out,
                                    const LocalMask& mask) {
    return maps_.forward(exec, in, out, mask, this->map_of(keys_at_.size()), this->options_.tile);
  }

  /// dq, dsink and this rank's shares of dk and dv: written, or added to what is there.
  template <class Exec, class T, class O, class D, class G>
  void attend_backward(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
                       const gradients<G>& grad, const gradients<float>& shares, bool adds) {
    this->recorder_.compute(exec, {"backward"}, [&] {
      const auto mask = local_mask();
      const auto score = local_score();
      const block_map_view& map =
          maps_.backward(exec, mask, this->map_of(keys_at_.size()), this->options_.tile);
      if constexpr (adds_up_dq<Exec, T>) {
        backend<Exec>::backward_step(exec, in, up, grad.dq, shares, mask, map, score,
                                     this->options_, adds, true, true);
      } else if (adds) {
        options adding = this->options_;
        adding.accumulate = true;
        backend<Exec>::backward(exec, in, up, shares, mask, map, score, adding);
      } else {
        backend<Exec>::backward_with_new_keys(exec, in, up, shares, mask, map, score,
                                              this->options_);
      }
    });
  }

  template <class T = float>
  view<T, 4> keys_tensor(kept_buffer<Comm>& memory, index_t keys, index_t dim) {
    return memory.template tensor<T>(*this->comm_, this->sizes_.batch, this->sizes_.kv_heads, keys,
                                     dim);
  }

  bool in_place_ = false;
  std::vector<std::vector<stretch>> stretches_; // of needed keys, by shard
  index_t keys_needed_ = 0;
  gathered_keys keys_at_;
  kept_maps maps_;
  kept_buffer<Comm> k_, v_, dk_, dv_; // of gathered keys
  home_memory<Comm> home_;
};

} // namespace maskring::cp::detail
