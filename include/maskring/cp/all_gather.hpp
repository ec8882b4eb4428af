// SPDX-License-Identifier: Apache-2.0
// All-gather attention: each rank collects the keys that its queries see, then computes once.
#pragma once

#include <maskring/cp/detail/driver.hpp>
#include <maskring/cp/detail/gathered.hpp>

#include <cstring>

namespace maskring::cp {

/// Attention over sequences that are split over the ranks of `comm`, like cp::ring and called like
/// it, but with one attention call per pass.
///
/// Each rank sends every other rank the interval of its keys and values that the plan says is
/// needed there, and lays out what it gets in global order without the longest stretch that it does
/// not need, so that the mask runs over consecutive keys with at most one leap. In the backward pass
/// the keys are gathered again and each rank's fp32 shares of dk and dv return to their owners, which
/// add them in a fixed order. Memory grows with the keys that a rank sees; the ring's does not, but
/// it makes a call for each shard.
///
/// Where ranks share memory and need the same keys there is one copy of keys and values, in global
/// order, for all of them: each rank adds its own, and in the backward pass all add their shares of dk
/// and dv to one sum of each, taking turns.
///
/// Method: the all-gather of Llama 3 (A. Dubey et al., 2024, section 3.3.2), with a plan.
template <class Comm, class QLayout, class KvLayout, class Mask, class Score>
class all_gather : public detail::driver<Comm, QLayout, KvLayout, Mask, Score> {
  using base = detail::driver<Comm, QLayout, KvLayout, Mask, Score>;

public:
  /// As cp::ring.
  all_gather(Comm& comm, const shape& sizes, const shards<QLayout, KvLayout>& split,
             const Mask& mask, const Score& score = {}, const options& opt = {})
      : base{name, comm,  sizes, split,
             mask, score, opt,   [&] { return cp::plan{mask, sizes, split}; }} {
    lay_out();
  }
  all_gather(Comm& comm, const cp::plan& known, const shape& sizes,
             const shards<QLayout, KvLayout>& split, const Mask& mask, const Score& score = {},
             const options& opt = {})
      : base{name, comm, sizes, split, mask, score, opt, [&] { return known; }} {
    lay_out();
  }

  savings saved_work(std::size_t element_bytes) const {
    return this->plan_.saved(this->sizes_, element_bytes);
  }

  /// As cp::ring::forward.
  template <class Exec, class T, class O>
  void forward(const Exec& exec, const inputs<T>& in, const results<O>& out) {
    base::template require_backend<Exec>();
    this->require_local(name, maskring::detail::check_forward(in, out, this->options_));
    this->template require_same_element<T>(name);
    const auto [k, v] = gather(exec, in.k, in.v);
    inputs<T> now{in.q, k, v};
    now.sink = in.sink;
    now.previous = in.previous;
    this->recorder_.compute(exec, {"forward"}, [&] {
      const auto mask = local_mask();
      const block_map_view& map =
          maps_.forward(exec, now, out, mask, this->map_of(keys_at_.size()), this->options_.tile);
      backend<Exec>::forward(among_others(exec), now, out, mask, map, local_score(),
                             this->options_);
    });
    if (in_place_) meet(exec);
  }

  /// As cp::ring::backward.
  template <class Exec, class T, class O, class D, class G>
  void backward(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
                const gradients<G>& grad) {
    base::template require_backend<Exec>();
    this->require_local(name, maskring::detail::check_backward(in, up, grad, this->options_));
    this->template require_same_element<T>(name);
    if (in_place_) {
      backward_in_place(exec, in, up, grad);
      return;
    }
    const auto [k, v] = gather(exec, in.k, in.v);
    const gradients<float> home = this->home_gradients(exec, grad, home_);
    const gradients<float> all{home.dq, gathered(dk_, keys_at_.size(), this->sizes_.qk_dim),
                               gathered(dv_, keys_at_.size(), this->sizes_.v_dim)};
    saved<T, O> now{in.q, k, v, in.out, in.lse};
    now.sink = in.sink;
    this->recorder_.compute(exec, {"backward"}, [&] {
      const auto mask = local_mask();
      const block_map_view& map =
          maps_.backward(exec, mask, this->map_of(keys_at_.size()), this->options_.tile);
      backend<Exec>::backward_with_new_keys(exec, now, up, all.with_sink(home.dsink), mask, map,
                                            local_score(), this->options_);
    });
    scatter(exec, all, home);
    this->round_gradients(exec, home, grad);
  }

private:
  static constexpr const char* name = "cp::all_gather";

  struct side_memory {
    detail::kept_buffer<Comm> ordered, arriving, leaving;
  };

  /// Where the needed keys of each shard go: stretches of the global sequence, from the first
  /// needed key on.
  void lay_out() {
    if constexpr (comm::memory_sharing<Comm>) {
      // One copy of all keys takes less than a copy of what each rank needs, if that is much.
      index_t needed = 0;
      for (int rank = 0; rank < this->ranks(); ++rank) {
        for (int shard = 0; shard < this->ranks(); ++shard) {
          needed += this->plan_.needed(rank, shard).size();
        }
      }
      in_place_ = this->comm_->shares_memory() && needed >= 2 * this->split_.kv.sequence();
    }
    for (int shard = 0; shard < this->ranks(); ++shard) {
      const interval part = this->plan_.needed(this->rank(), shard);
      stretches_.push_back(detail::stretches_of(this->split_.kv.map(shard), part));
      keys_needed_ += part.size();
    }
    keys_at_ = detail::gathered_keys{stretches_, !in_place_};
    own_ = detail::stretches_of(this->split_.kv.map(this->rank()), {0, this->kv_size()});
  }

  /// Where ranks share a device, each one's call is followed by others'.
  template <class Exec>
  Exec among_others(const Exec& exec) const {
    if constexpr (requires { backend<Exec>::among_others(exec); }) {
      if (in_place_) return backend<Exec>::among_others(exec);
    }
    return exec;
  }

  auto local_mask() const {
    return shard::rewrite(this->mask_, this->split_.q.map(this->rank()), keys_at_.map());
  }
  auto local_score() const {
    return shard::rewrite(this->score_, this->split_.q.map(this->rank()), keys_at_.map());
  }

  template <class T = float>
  view<T, 4> gathered(detail::kept_buffer<Comm>& memory, index_t keys, index_t dim) {
    return memory.template tensor<T>(*this->comm_, this->sizes_.batch, this->sizes_.kv_heads, keys,
                                     dim);
  }

  /// The part of packed memory, of tensors one behind the other, that begins after `keys` keys.
  template <class T>
  view<T, 4> packed_at(T* memory, index_t keys, index_t count, index_t dim) const {
    const index_t heads = this->sizes_.batch * this->sizes_.kv_heads;
    return {memory + heads * keys * dim, {this->sizes_.batch, this->sizes_.kv_heads, count, dim}};
  }

  /// Two tensors of all keys that rank 0 keeps for all ranks: of the dims of keys and of values.
  template <class T>
  std::pair<view<T, 4>, view<T, 4>> shared(detail::kept_buffer<Comm>& of_k,
                                           detail::kept_buffer<Comm>& of_v) {
    const shape& s = this->sizes_;
    const index_t count = this->split_.kv.sequence();
    view<T, 4> both[2] = {{nullptr, {s.batch, s.kv_heads, count, s.qk_dim}},
                          {nullptr, {s.batch, s.kv_heads, count, s.v_dim}}};
    if (this->rank() == 0) {
      both[0] = gathered<T>(of_k, count, s.qk_dim);
      both[1] = gathered<T>(of_v, count, s.v_dim);
    }
    T* mine[] = {both[0].data, both[1].data};
    const std::vector<std::byte> all = this->comm_->share(std::as_bytes(std::span{mine}));
    std::memcpy(mine, all.data(), sizeof(mine));
    both[0].data = mine[0];
    both[1].data = mine[1];
    return {both[0], both[1]};
  }

  /// The keys from this rank's first needed one to its last.
  template <class T>
  view<T, 4> seen(const view<T, 4>& all) const {
    return all.slice(2, keys_at_.first(), keys_at_.size());
  }

  /// Where this rank's own keys stand in a tensor of all: calls visit(local, global) with views.
  template <class A, class B, class Visit>
  void for_own(const view<A, 4>& local, const view<B, 4>& all, Visit visit) const {
    for (const detail::stretch& s : own_) {
      view<B, 4> place = all.slice(2, s.first, s.count);
      place.strides[2] *= s.step;
      visit(local.slice(2, s.position, s.count), place);
    }
  }

  /// Every rank waits for all: what is shared is there, or may change again. All, since tiles reach
  /// into keys that nobody needs.
  template <class Exec>
  void meet(const Exec& exec) {
    const auto everybody = [](int) { return true; };
    detail::exchange_word(exec, *this->comm_, everybody, everybody);
  }

  template <class Exec, class T>
  std::pair<view<const T, 4>, view<const T, 4>>
  gather_in_place(const Exec& exec, const view<const T, 4>& k, const view<const T, 4>& v) {
    const auto [all_k, all_v] = shared<T>(keys_.ordered, values_.ordered);
    this->recorder_.compute(exec, {"own keys"}, [&, all_k = all_k, all_v = all_v] {
      const auto copy = [&](const view<const T, 4>& own, const view<T, 4>& place) {
        backend<Exec>::copy(exec, own, place);
      };
      for_own(k, all_k, copy);
      for_own(v, all_v, copy);
    });
    meet(exec);
    return {seen(all_k), seen(all_v)};
  }

  template <class Exec, class T, class O, class D, class G>
  void backward_in_place(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
                         const gradients<G>& grad) {
    const int rank = this->rank();
    const auto [dk, dv] = shared<float>(dk_, dv_);
    const auto clear = [&](const auto&, const view<float, 4>& part) {
      backend<Exec>::zero(exec, part);
    };
    for_own(grad.dk, dk, clear);
    for_own(grad.dv, dv, clear);
    const auto [k, v] = gather_in_place(exec, in.k, in.v);
    saved<T, O> now{in.q, k, v, in.out, in.lse};
    now.sink = in.sink;
    constexpr bool sums_dq = adds_up_dq<Exec, T>;
    const gradients<float> home = this->home_gradients(exec, grad, home_, {!sums_dq, false});

    const auto nobody = [](int) { return false; };
    detail::exchange_word(exec, *this->comm_, nobody, [&](int peer) { return peer == rank - 1; });
    this->recorder_.compute(exec, {"backward"}, [&, dk = dk, dv = dv] {
      const auto mask = local_mask();
      const block_map_view& map =
          maps_.backward(exec, mask, this->map_of(keys_at_.size()), this->options_.tile);
      const gradients<float> to{home.dq, seen(dk), seen(dv)};
      if constexpr (sums_dq) {
        backend<Exec>::backward_step(exec, now, up, grad.dq, to.with_sink(grad.dsink), mask, map,
                                     local_score(), this->options_, true, true, true);
      } else {
        options adding = this->options_;
        adding.accumulate = true;
        backend<Exec>::backward(exec, now, up, to.with_sink(home.dsink), mask, map, local_score(),
                                adding);
      }
    });
    detail::exchange_word(exec, *this->comm_, [&](int peer) { return peer == rank + 1; }, nobody);

    meet(exec);
    const auto hand_out = [&](const view<G, 4>& own, const view<float, 4>& sum) {
      if constexpr (std::is_same_v<G, float>) {
        if (this->options_.accumulate) {
          backend<Exec>::add(exec, view<const float, 4>{sum}, own);
          return;
        }
      }
      backend<Exec>::copy(exec, view<const float, 4>{sum}, own);
    };
    for_own(grad.dk, dk, hand_out);
    for_own(grad.dv, dv, hand_out);
  }

  template <class Exec, class T>
  std::pair<view<const T, 4>, view<const T, 4>> gather(const Exec& exec, const view<const T, 4>& k,
                                                       const view<const T, 4>& v) {
    if (in_place_) return gather_in_place(exec, k, v);
    this->group_.clear();
    const view<T, 4> all_k = post(exec, keys_, k), all_v = post(exec, values_, v);
    const int self = this->rank();
    this->overlap(exec, {"own keys"}, [&] {
      // While the others' keys are on their way: what none of them fills, and this rank's own.
      // What no query sees still meets a probability of 0, and 0 times garbage may be NaN.
      if (keys_needed_ < keys_at_.size()) {
        backend<Exec>::zero(exec, all_k);
        backend<Exec>::zero(exec, all_v);
      }
      const interval own = this->plan_.needed(self, self);
      spread(exec, k.slice(2, own.lo, own.size()), all_k, self);
      spread(exec, v.slice(2, own.lo, own.size()), all_v, self);
    });
    index_t before = 0;
    for (int step = 1; step < this->ranks(); ++step) {
      const int shard = this->plan_.shard_at(self, step);
      const index_t count = this->needed_at(step).size();
      spread(exec, view<const T, 4>{arrived<T>(keys_, before, count, k.extent(3))}, all_k, shard);
      spread(exec, view<const T, 4>{arrived<T>(values_, before, count, v.extent(3))}, all_v, shard);
      before += count;
    }
    return {all_k, all_v};
  }

  /// Adds the messages of the keys or of the values; returns where they will be in order.
  template <class Exec, class T>
  view<T, 4> post(const Exec& exec, side_memory& memory, const view<const T, 4>& local) {
    const index_t dim = local.extent(3);
    const int self = this->rank(), ranks = this->ranks();
    // Ranks that need the same interval are sent the same copy of it.
    std::vector<std::pair<interval, index_t>> copies;
    index_t copied = 0, before = 0;
    for (int step = 1; step < ranks; ++step) {
      const interval part = this->plan_.needed((self + step) % ranks, self);
      if (part.empty() || detail::is_packed(local.slice(2, part.lo, part.size())) ||
          find(copies, part)) {
        continue;
      }
      copies.push_back({part, copied});
      copied += part.size();
    }
    T* leaving = gathered<T>(memory.leaving, copied, dim).data;
    for (const auto& [part, at] : copies) {
      backend<Exec>::copy(exec, local.slice(2, part.lo, part.size()),
                          packed_at(leaving, at, part.size(), dim));
    }
    for (int step = 1; step < ranks; ++step) {
      const int to = (self + step) % ranks, from = this->plan_.shard_at(self, step);
      const interval part = this->plan_.needed(to, self);
      if (!part.empty()) {
        const auto* copy = find(copies, part);
        const T* data = copy ? packed_at(leaving, copy->second, part.size(), dim).data
                             : local.slice(2, part.lo, part.size()).data;
        this->group_.push_back(comm::send(to, data, numbers(part.size(), dim)));
      }
      const index_t count = this->needed_at(step).size();
      if (count == 0) continue;
      this->group_.push_back(
          comm::receive(from, arrived<T>(memory, before, count, dim).data, numbers(count, dim)));
      before += count;
    }
    return gathered<T>(memory.ordered, keys_at_.size(), dim);
  }

  /// Returns the other ranks' shares of dk and dv to them and adds what comes back to this rank's.
  template <class Exec>
  void scatter(const Exec& exec, const gradients<float>& all, const gradients<float>& home) {
    const int self = this->rank(), ranks = this->ranks();
    this->group_.clear();
    const index_t leaving = keys_needed_ - this->plan_.needed(self, self).size();
    index_t coming = 0;
    for (int step = 1; step < ranks; ++step) {
      coming += this->plan_.needed((self + step) % ranks, self).size();
    }
    const auto exchange = [&](const view<float, 4>& tensor, side_memory& memory) {
      const index_t dim = tensor.extent(3);
      float* out = gathered(memory.leaving, leaving, dim).data;
      float* in = gathered(memory.arriving, coming, dim).data;
      index_t sent = 0, received = 0;
      for (int step = 1; step < ranks; ++step) {
        const int owner = this->plan_.shard_at(self, step), worker = (self + step) % ranks;
        const index_t count = this->needed_at(step).size();
        if (count > 0) {
          const view<float, 4> packed = packed_at(out, sent, count, dim);
          collect(exec, tensor, packed, owner);
          this->group_.push_back(comm::send(owner, packed.data, packed.size()));
          sent += count;
        }
        const index_t back = this->plan_.needed(worker, self).size();
        if (back == 0) continue;
        this->group_.push_back(
            comm::receive(worker, packed_at(in, received, back, dim).data, numbers(back, dim)));
        received += back;
      }
      return in;
    };
    const float* dk = exchange(all.dk, dk_side_);
    const float* dv = exchange(all.dv, dv_side_);
    this->overlap(exec, {"own gradients"}, [&] {
      add_own(exec, all.dk, home.dk);
      add_own(exec, all.dv, home.dv);
    });
    const detail::share_sums sums = this->sums_at(exec, home, home_);
    index_t before = 0;
    for (int step = 1; step < ranks; ++step) {
      const interval part = this->plan_.needed((self + step) % ranks, self);
      if (part.empty()) continue;
      this->add_share(exec, packed_at(dk, before, part.size(), home.dk.extent(3)),
                      packed_at(dv, before, part.size(), home.dv.extent(3)), sums, part.lo);
      before += part.size();
    }
  }

  /// From a packed interval of a shard to its places in the global order, and back.
  template <class Exec, class T>
  void spread(const Exec& exec, const view<const T, 4>& packed, const view<T, 4>& ordered,
              int shard) const {
    for (const detail::stretch& s : stretches_[static_cast<std::size_t>(shard)]) {
      backend<Exec>::copy(exec, packed.slice(2, s.position, s.count), placed(ordered, s));
    }
  }
  template <class Exec>
  void collect(const Exec& exec, const view<float, 4>& ordered, const view<float, 4>& packed,
               int shard) const {
    for (const detail::stretch& s : stretches_[static_cast<std::size_t>(shard)]) {
      backend<Exec>::copy(exec, view<const float, 4>{placed(ordered, s)},
                          packed.slice(2, s.position, s.count));
    }
  }
  template <class Exec>
  void add_own(const Exec& exec, const view<float, 4>& ordered, const view<float, 4>& home) const {
    const interval own = this->plan_.needed(this->rank(), this->rank());
    for (const detail::stretch& s : stretches_[static_cast<std::size_t>(this->rank())]) {
      backend<Exec>::add(exec, view<const float, 4>{placed(ordered, s)},
                         home.slice(2, own.lo + s.position, s.count));
    }
  }
  template <class T>
  view<T, 4> placed(const view<T, 4>& ordered, const detail::stretch& s) const {
    view<T, 4> out = ordered.slice(2, keys_at_.place(s.first), s.count);
    out.strides[2] *= s.step;
    return out;
  }

  template <class T>
  view<T, 4> arrived(side_memory& memory, index_t before, index_t count, index_t dim) {
    const index_t others = keys_needed_ - this->plan_.needed(this->rank(), this->rank()).size();
    return packed_at(gathered<T>(memory.arriving, others, dim).data, before, count, dim);
  }
  index_t numbers(index_t keys, index_t dim) const {
    return this->sizes_.batch * this->sizes_.kv_heads * keys * dim;
  }
  static const std::pair<interval, index_t>*
  find(const std::vector<std::pair<interval, index_t>>& copies, const interval& part) {
    for (const auto& copy : copies) {
      if (copy.first == part) return &copy;
    }
    return nullptr;
  }

  std::vector<std::vector<detail::stretch>> stretches_; // by shard
  std::vector<detail::stretch> own_;                    // all keys of this rank
  detail::gathered_keys keys_at_;
  bool in_place_ = false;
  index_t keys_needed_ = 0;
  detail::kept_maps maps_;
  side_memory keys_, values_, dk_side_, dv_side_;
  detail::kept_buffer<Comm> dk_, dv_;
  detail::home_memory<Comm> home_;
};

template <class Comm, shard::layout Layout, class Mask, class Score = score::none>
all_gather(Comm&, shape, Layout, Mask, Score = {}, options = {})
    -> all_gather<Comm, Layout, Layout, Mask, Score>;
template <class Comm, class Q, class Kv, class Mask, class Score = score::none>
all_gather(Comm&, shape, shards<Q, Kv>, Mask, Score = {}, options = {})
    -> all_gather<Comm, Q, Kv, Mask, Score>;
template <class Comm, shard::layout Layout, class Mask, class Score = score::none>
all_gather(Comm&, plan, shape, Layout, Mask, Score = {}, options = {})
    -> all_gather<Comm, Layout, Layout, Mask, Score>;
template <class Comm, class Q, class Kv, class Mask, class Score = score::none>
all_gather(Comm&, plan, shape, shards<Q, Kv>, Mask, Score = {}, options = {})
    -> all_gather<Comm, Q, Kv, Mask, Score>;

} // namespace maskring::cp
