// SPDX-License-Identifier: Apache-2.0
// The backward pass of a ring.
#pragma once

#include <maskring/cp/detail/cuts.hpp>
#include <maskring/cp/detail/ring_steps.hpp>

namespace maskring::cp::detail {

/// While a rank computes gradients of keys, those of its call before are on their way home and
/// others arrive: three times the memory of one call's. So a call works on a cut of a step's keys.
///
/// @tparam Steps ring_steps, or what builds on it.
template <class Steps>
class ring_backward : public Steps {
  using Comm = typename Steps::communicator;

protected:
  using Steps::Steps;

  /// @param smallest_cut rows of keys, in all heads.
  template <class Exec, class T, class O, class D, class G>
  void run_backward(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
                    const gradients<G>& grad, index_t smallest_cut) {
    const int ranks = this->ranks(), rank = this->rank();
    // Calls that add up dq themselves work on all queries each time.
    constexpr bool in_steps = adds_up_dq<Exec, T>;
    // Where all of the rank's own keys are needed, step 0 writes their gradients.
    const bool writes =
        in_steps && !this->options_.accumulate && this->needed_at(0).size() == this->kv_size();
    const gradients<float> home =
        this->home_gradients(exec, grad, this->home_, {!in_steps, true, !writes});
    const share_sums sums = this->sums_at(exec, home, this->home_);
    using rotation = detail::rotation<Comm, Exec, T>;
    const typename rotation::gradient_sums at_home{home.dk, home.dv};
    rotation moving{*this->comm_,  exec, this->plan_, this->keys_,
                    this->values_, in.k, in.v,        at_home};
    const bool sends = !moving.in_place();
    const std::vector<call> calls = calls_of(sends, smallest_cut);

    std::vector<comm::transfer> coming; // the keys and values of the next step
    for (std::size_t i = 0; i <= calls.size(); ++i) {
      const call now = i < calls.size() ? calls[i] : call{ranks, {}, {}};
      this->group_.clear();
      if (now.step + 1 < ranks) {
        if (now.part.index == 0) {
          coming.clear();
          moving.post(now.step, coming);
        }
        for (const comm::transfer& t : coming) this->group_.push_back(now.part.of(t));
      }
      // What this rank computed in the call before goes home, and its own comes home from the rank
      // that worked on it then.
      const call before = i > 0 ? calls[i - 1] : call{};
      const bool returns = sends && before.step > 0;
      const int worker = (rank + before.step) % ranks;
      const interval returning =
          returns ? before.part.of(this->plan_.needed(worker, rank)) : interval{};
      const auto [dk_back, dv_back] = pair_of(returned_, returning);
      if (returns && !before.keys.empty()) {
        const auto [dk, dv] = pair_of(computed_[(i - 1) % 2], before.keys);
        const int owner = this->plan_.shard_at(rank, before.step);
        this->group_.push_back(comm::send(owner, dk.data, dk.size()));
        this->group_.push_back(comm::send(owner, dv.data, dv.size()));
      }
      if (!returning.empty()) {
        this->group_.push_back(comm::receive(worker, dk_back.data, dk_back.size()));
        this->group_.push_back(comm::receive(worker, dv_back.data, dv_back.size()));
      }
      const interval queries =
          in_steps ? all_queries_of(now) : queries_of(now, static_cast<bool>(grad.dsink));
      this->overlap(exec, {"backward", now.step, queries.empty()}, [&] {
        if (queries.empty()) return;
        const bool adds = now.step == 0 ? !writes : !sends;
        const auto [dk, dv] = now.step == 0
                                  ? std::pair{home.dk.slice(2, now.keys.lo, now.keys.size()),
                                              home.dv.slice(2, now.keys.lo, now.keys.size())}
                              : sends ? pair_of(computed_[i % 2], now.keys)
                                      : moving.sums(now.step, now.keys);
        saved<T, O> part{this->rows_of(in.q, queries), moving.keys(now.keys),
                         moving.values(now.keys), this->rows_of(in.out, queries),
                         this->rows_of(in.lse, queries)};
        if constexpr (in_steps) {
          part.sink = in.sink;
          attend_in_steps(exec, part, up, grad, {view<float, 4>{}, dk, dv}, adds, now);
        } else {
          gradients<float> to{this->rows_of(home.dq, queries), dk, dv};
          if (grad.dsink && now.first) {
            part.sink = in.sink;
            to.dsink = grad.dsink;
          }
          const upstream<D> above{this->rows_of(up.dout, queries), this->rows_of(up.dlse, queries)};
          attend(exec, part, above, to, adds, now, queries);
        }
      });
      if (!returning.empty()) this->add_share(exec, dk_back, dv_back, sums, returning.lo);
      if (now.part.last() && now.step + 1 < ranks) moving.advance(now.step);
    }
    moving.finish();
    this->round_gradients(exec, home, grad);
  }

private:
  struct key_gradients {
    kept_buffer<Comm> dk, dv;
  };

  /// One attention call: over the keys of a step or a cut of them.
  struct call {
    int step = 0;
    cut part;
    interval keys;
    bool first = false, last = false; ///< of those that have keys
  };

  std::vector<call> calls_of(bool cuts, index_t smallest_cut) const {
    const shape& s = this->sizes_;
    const index_t rows = max(index_t{1}, s.batch * s.kv_heads);
    index_t longest = 1;
    for (int rank = 0; rank < this->ranks(); ++rank) {
      longest = max(longest, this->plan_.kv_size(rank));
    }
    // A quarter: what travels then takes little beside the sums at home.
    const index_t most = max((longest + 3) / 4, (smallest_cut + rows - 1) / rows);
    std::vector<call> out;
    for (int step = 0; step < this->ranks(); ++step) {
      const int count = cuts && step > 0 ? cuts_of(this->plan_, step, most) : 1;
      for (int i = 0; i < count; ++i) {
        const cut part{i, count};
        out.push_back({step, part, part.of(this->needed_at(step))});
      }
    }
    const auto has_keys = [](const call& c) { return !c.keys.empty(); };
    const auto first = std::find_if(out.begin(), out.end(), has_keys);
    const auto last = std::find_if(out.rbegin(), out.rend(), has_keys);
    (first == out.end() ? out.front() : *first).first = true;
    (last == out.rend() ? out.front() : *last).last = true;
    return out;
  }

  /// The queries that a call works on. All of them count, once, for the gradient of a sink.
  interval queries_of(const call& now, bool with_sink) const {
    if (with_sink && now.first) return {0, this->q_size()};
    return now.keys.empty() ? interval{} : this->schedule_.queries(now.step);
  }
  /// The same where all of them count each time, and once for what dq is where they see nothing.
  interval all_queries_of(const call& now) const {
    return {0, now.first || !now.keys.empty() ? this->q_size() : 0};
  }

  template <class Exec, class T, class O, class D>
  void attend(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
              const gradients<float>& grad, bool adds, const call& now, const interval& queries) {
    const auto mask = this->mask_at(now.step, queries, now.keys);
    const auto score = this->score_at(now.step, queries, now.keys);
    const block_map_view& map = map_of(exec, mask, now, queries);
    if (adds) {
      options adding = this->options_;
      adding.accumulate = true;
      backend<Exec>::backward(exec, in, up, grad, mask, map, score, adding);
    } else {
      backend<Exec>::backward_with_new_keys(exec, in, up, grad, mask, map, score, this->options_);
    }
  }

  template <class Exec, class T, class O, class D, class G>
  void attend_in_steps(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
                       const gradients<G>& grad, const gradients<float>& keys, bool adds,
                       const call& now) {
    const interval queries{0, this->q_size()};
    const auto mask = this->mask_at(now.step, queries, now.keys);
    backend<Exec>::backward_step(
        exec, in, up, grad.dq, keys.with_sink(grad.dsink), mask, map_of(exec, mask, now, queries),
        this->score_at(now.step, queries, now.keys), this->options_, adds, now.first, now.last);
  }

  template <class Exec, class LocalMask>
  const block_map_view& map_of(const Exec& exec, const LocalMask& mask, const call& now,
                               const interval& queries) {
    return this->maps_at(now.step, queries, now.keys)
        .backward(exec, mask, this->lengths_of(queries, now.keys), this->options_.tile);
  }

  /// The gradients of an interval of keys in kept memory, packed: what travels.
  std::pair<view<float, 4>, view<float, 4>> pair_of(key_gradients& memory, const interval& part) {
    const shape& s = this->sizes_;
    return {
        memory.dk.template tensor<float>(*this->comm_, s.batch, s.kv_heads, part.size(), s.qk_dim),
        memory.dv.template tensor<float>(*this->comm_, s.batch, s.kv_heads, part.size(), s.v_dim)};
  }

  key_gradients computed_[2], returned_;
};

} // namespace maskring::cp::detail
