// SPDX-License-Identifier: Apache-2.0
// Keys gathered by each rank for itself.
#pragma once

#include <maskring/cp/detail/gather_base.hpp>

namespace maskring::cp::detail {

/// The intervals that a rank needs of the shards arrive one after the other, each while the one
/// before is put in its places. In the backward pass the shares of dk and dv return in the same
/// way.
///
/// @tparam Base gather_base, or what builds on it.
template <class Base>
class gather_copies : public Base {
  using Comm = typename Base::communicator;

protected:
  using Base::Base;

  template <class Exec, class T>
  std::pair<view<const T, 4>, view<const T, 4>>
  copied_keys(const Exec& exec, const view<const T, 4>& k, const view<const T, 4>& v) {
    const int self = this->rank(), ranks = this->ranks();
    side<T> keys{k, this->template keys_tensor<T>(this->k_, this->keys_at_.size(), k.extent(3)),
                 keys_moving_};
    side<T> values{v, this->template keys_tensor<T>(this->v_, this->keys_at_.size(), v.extent(3)),
                   values_moving_};
    for (int step = 0; step < ranks; ++step) {
      this->group_.clear();
      if (step + 1 < ranks) {
        const int to = (self + step + 1) % ranks, from = this->plan_.shard_at(self, step + 1);
        for (side<T>* s : {&keys, &values}) {
          const interval out = this->plan_.needed(to, self);
          if (!out.empty()) {
            const view<const T, 4> packed = packed_part(exec, *s, out);
            this->group_.push_back(comm::send(to, packed.data, packed.size()));
          }
          const index_t count = this->needed_at(step + 1).size();
          if (count == 0) continue;
          const view<T, 4> in = arriving(*s, step + 1, count);
          this->group_.push_back(comm::receive(from, in.data, in.size()));
        }
      }
      this->overlap(exec, {"keys", step}, [&] {
        const int shard = this->plan_.shard_at(self, step);
        const interval part = this->needed_at(step);
        for (side<T>* s : {&keys, &values}) {
          // What no query sees still meets a probability of 0, and 0 times garbage may be NaN.
          if (step == 0 && this->keys_needed_ < this->keys_at_.size()) {
            backend<Exec>::zero(exec, s->ordered);
          }
          if (part.empty()) continue;
          spread(exec,
                 step == 0 ? s->own.slice(2, part.lo, part.size())
                           : view<const T, 4>{arriving(*s, step, part.size())},
                 s->ordered, shard);
        }
      });
    }
    return {keys.ordered, values.ordered};
  }

  template <class Exec, class T, class O, class D, class G>
  void backward_by_copies(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
                          const gradients<G>& grad) {
    const auto [k, v] = copied_keys(exec, in.k, in.v);
    const gradients<float> home =
        this->home_gradients(exec, grad, this->home_, {!adds_up_dq<Exec, T>, true, true});
    const index_t keys = this->keys_at_.size();
    const gradients<float> all{home.dq, this->keys_tensor(this->dk_, keys, this->sizes_.qk_dim),
                               this->keys_tensor(this->dv_, keys, this->sizes_.v_dim)};
    saved<T, O> now{in.q, k, v, in.out, in.lse};
    now.sink = in.sink;
    this->attend_backward(exec, now, up, grad, all.with_sink(grad.dsink), false);
    scatter(exec, all, home);
    this->round_gradients(exec, home, grad);
  }

private:
  /// What moves of keys or of values, and of their gradients: two steps' at a time.
  struct moving_memory {
    kept_buffer<Comm> leaving[2], arriving[2];
  };
  template <class T>
  struct side {
    view<const T, 4> own;
    view<T, 4> ordered;
    moving_memory& memory;
    interval packed{}; // what `leaving` holds
  };

  template <class T>
  view<T, 4> arriving(side<T>& s, int step, index_t count) {
    return this->template keys_tensor<T>(s.memory.arriving[step % 2], count, s.own.extent(3));
  }

  /// Ranks that need the same interval are sent the same copy of it.
  template <class Exec, class T>
  view<const T, 4> packed_part(const Exec& exec, side<T>& s, const interval& part) {
    const view<const T, 4> lying = s.own.slice(2, part.lo, part.size());
    if (is_packed(lying)) return lying;
    const view<T, 4> copy =
        this->template keys_tensor<T>(s.memory.leaving[0], part.size(), s.own.extent(3));
    if (!(s.packed == part)) backend<Exec>::copy(exec, lying, copy);
    s.packed = part;
    return copy;
  }

  /// Returns the other ranks' shares of dk and dv to them and adds what comes back to this rank's.
  template <class Exec>
  void scatter(const Exec& exec, const gradients<float>& all, const gradients<float>& home) {
    const int self = this->rank(), ranks = this->ranks();
    const share_sums sums = this->sums_at(exec, home, this->home_);
    const auto leaving = [&](moving_memory& memory, const view<float, 4>& like, int step) {
      return this->keys_tensor(memory.leaving[step % 2], this->needed_at(step).size(),
                               like.extent(3));
    };
    const auto coming_back = [&](int step) {
      return this->plan_.needed((self + step) % ranks, self);
    };
    const auto arriving = [&](moving_memory& memory, const view<float, 4>& like, int step) {
      return this->keys_tensor(memory.arriving[step % 2], coming_back(step).size(), like.extent(3));
    };
    const auto collect_step = [&](int step) {
      if (this->needed_at(step).empty()) return;
      const int owner = this->plan_.shard_at(self, step);
      collect(exec, all.dk, leaving(keys_moving_, all.dk, step), owner);
      collect(exec, all.dv, leaving(values_moving_, all.dv, step), owner);
    };
    // At each step a share leaves and one arrives, while the next is packed and the last is added.
    for (int step = 0; step <= ranks; ++step) {
      this->group_.clear();
      if (step > 0 && step < ranks) {
        const int owner = this->plan_.shard_at(self, step), worker = (self + step) % ranks;
        const auto exchange = [&](moving_memory& memory, const view<float, 4>& like) {
          const view<float, 4> out = leaving(memory, like, step), in = arriving(memory, like, step);
          if (out.size() > 0) this->group_.push_back(comm::send(owner, out.data, out.size()));
          if (in.size() > 0) this->group_.push_back(comm::receive(worker, in.data, in.size()));
        };
        exchange(keys_moving_, all.dk);
        exchange(values_moving_, all.dv);
      }
      this->overlap(exec, {"gradients", step}, [&] {
        if (step == 0) {
          add_own(exec, all.dk, home.dk);
          add_own(exec, all.dv, home.dv);
        }
        if (step + 1 < ranks) collect_step(step + 1);
        if (step > 1 && !coming_back(step - 1).empty()) {
          this->add_share(exec, arriving(keys_moving_, all.dk, step - 1),
                          arriving(values_moving_, all.dv, step - 1), sums,
                          coming_back(step - 1).lo);
        }
      });
    }
  }

  /// From a packed interval of a shard to its places in the global order, and back.
  template <class Exec, class T>
  void spread(const Exec& exec, const view<const T, 4>& packed, const view<T, 4>& ordered,
              int shard) const {
    for (const stretch& s : this->stretches_[static_cast<std::size_t>(shard)]) {
      backend<Exec>::copy(exec, packed.slice(2, s.position, s.count), placed(ordered, s));
    }
  }
  template <class Exec>
  void collect(const Exec& exec, const view<float, 4>& ordered, const view<float, 4>& packed,
               int shard) const {
    for (const stretch& s : this->stretches_[static_cast<std::size_t>(shard)]) {
      backend<Exec>::copy(exec, view<const float, 4>{placed(ordered, s)},
                          packed.slice(2, s.position, s.count));
    }
  }
  template <class Exec>
  void add_own(const Exec& exec, const view<float, 4>& ordered, const view<float, 4>& home) const {
    const interval own = this->plan_.needed(this->rank(), this->rank());
    for (const stretch& s : this->stretches_[static_cast<std::size_t>(this->rank())]) {
      backend<Exec>::add(exec, view<const float, 4>{placed(ordered, s)},
                         home.slice(2, own.lo + s.position, s.count));
    }
  }
  template <class T>
  view<T, 4> placed(const view<T, 4>& ordered, const stretch& s) const {
    view<T, 4> out = ordered.slice(2, this->keys_at_.place(s.first), s.count);
    out.strides[2] *= s.step;
    return out;
  }

  moving_memory keys_moving_, values_moving_;
};

} // namespace maskring::cp::detail
