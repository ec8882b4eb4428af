// SPDX-License-Identifier: Apache-2.0
// Ring attention: keys and values travel from rank to rank while each rank works on what it holds.
#pragma once

#include <maskring/cp/detail/rotation.hpp>
#include <maskring/cp/detail/schedule.hpp>
#include <maskring/cp/detail/tile_schedule.hpp>
#include <maskring/shard/subdivided.hpp>

#include <map>
#include <tuple>

namespace maskring::cp {

/// Attention over sequences that are split over the ranks of `comm`; each rank calls it with its
/// own shards and gets its own shards of the results.
///
/// ```cpp
/// cp::ring ring{comm, {.batch = 1, .q_heads = 8, .kv_heads = 2, .qk_dim = 64, .v_dim = 64},
///               shard::zigzag{tokens, comm.size()}, mask::causal{}};
/// ring.forward(host(), inputs{q, k, v}, results{out, lse});
/// ring.backward(host(), saved{q, k, v, out, lse}, upstream{dout}, gradients{dq, dk, dv});
/// ```
///
/// The mask and the score modifier see global indices. Only the keys that a rank needs are sent to
/// it (cp::plan says by whom), in the inputs' type and never with repeated heads, while it computes
/// on those before, with the queries that see something of them; partial results continue in fp32
/// in the attention call itself and are rounded once. In the backward pass the keys travel again;
/// each rank sends its fp32 share of dk and dv straight to the shard's owner, which adds them in a
/// fixed order. Where ranks share memory they read, and add to, one another's tensors where they
/// lie, taking turns. All ranks make the same calls in the same order. Block maps and buffers are
/// made at the first call and kept; beside the state in fp32 these are two shards of keys and
/// values, and a third where only a part of one is sent on.
///
/// Method: H. Liu et al., Ring Attention with Blockwise Transformers, 2023; the carried softmax
/// state is that of M. Milakov and N. Gimelshein, 2018.
template <class Comm, class QLayout, class KvLayout, class Mask, class Score>
class ring : public detail::driver<Comm, QLayout, KvLayout, Mask, Score> {
  using base = detail::driver<Comm, QLayout, KvLayout, Mask, Score>;

public:
  /// @param comm outlives the driver.
  /// @param opt `scale` and `tile` of the attention calls; with `accumulate`, backward adds to the
  ///        gradients, which must then be floats.
  /// @throws std::invalid_argument on every rank if ranks were given different sizes, layouts or
  ///         masks, or sizes that do not fit together.
  ring(Comm& comm, const shape& sizes, const shards<QLayout, KvLayout>& split, const Mask& mask,
       const Score& score = {}, const options& opt = {})
      : base{name, comm,  sizes, split,
             mask, score, opt,   [&] { return cp::plan{mask, sizes, split}; }},
        schedule_{this->plan_, comm.rank(), max(1, opt.tile.q)} {}

  /// With a plan made before, from a mask that the host can ask where `mask` itself reads the
  /// memory of a device.
  ring(Comm& comm, const cp::plan& known, const shape& sizes,
       const shards<QLayout, KvLayout>& split, const Mask& mask, const Score& score = {},
       const options& opt = {})
      : base{name, comm, sizes, split, mask, score, opt, [&] { return known; }},
        schedule_{this->plan_, comm.rank(), max(1, opt.tile.q)} {}

  savings saved_work(std::size_t element_bytes) const {
    return this->plan_.saved(this->sizes_, element_bytes);
  }

  /// out and lse of the local queries over the keys of all ranks. `in.sink` counts once.
  /// @throws std::invalid_argument before anything moves if a local tensor has other sizes.
  template <class Exec, class T, class O>
  void forward(const Exec& exec, const inputs<T>& in, const results<O>& out) {
    base::template require_backend<Exec>();
    this->require_local(name, maskring::detail::check_forward(in, out, this->options_));
    this->template require_same_element<T>(name);
    const index_t batch = this->sizes_.batch, heads = this->sizes_.q_heads;
    const index_t rows = this->q_size();
    rotation<Exec, T> moving{*this->comm_, exec, this->plan_, keys_, values_, in.k, in.v};
    if constexpr (stepping_backend<Exec>) {
      if (step_tile(exec, in, out, moving)) {
        forward_by_tiles(exec, in, out, moving);
        return;
      }
    }

    // The state between steps: in the results themselves where they hold floats.
    view<float, 4> state;
    if constexpr (std::is_same_v<O, float>) {
      state = out.out;
    } else if (schedule_.carries()) {
      state = state_.template tensor<float>(*this->comm_, batch, heads, rows, this->sizes_.v_dim);
    }
    view<float, 3> lse = out.lse, sum;
    if (!lse && schedule_.carries()) lse = numbers(state_lse_);
    if (open_backend<Exec> && schedule_.carries()) sum = numbers(state_sum_);

    for (int step = 0; step < this->ranks(); ++step) {
      this->group_.clear();
      if (step + 1 < this->ranks()) moving.post(step, this->group_);
      const std::vector<detail::piece>& pieces = schedule_.pieces(step);
      this->overlap(exec, {"forward", step, pieces.empty()}, [&] {
        const interval keys = this->needed_at(step);
        for (const detail::piece& p : pieces) {
          inputs<T> now{rows_of(in.q, p.queries), moving.keys(keys), moving.values(keys)};
          now.previous = rows_of(p.first ? in.previous : carried{state, lse}, p.queries);
          const open_rows open{rows_of(sum, p.queries), !p.first, !p.last};
          const view<float, 3> piece_lse = rows_of(lse, p.queries);
          if (p.last) {
            now.sink = in.sink;
            attend(exec, now, results<O>{rows_of(out.out, p.queries), piece_lse}, step, p.queries,
                   open);
          } else {
            attend(exec, now, results<float>{rows_of(state, p.queries), piece_lse}, step,
                   p.queries, open);
          }
        }
      });
      if (step + 1 < this->ranks()) moving.advance(step);
    }
    moving.finish();
  }

  /// The gradients of the local queries, keys and values, from all ranks' queries. `grad.dsink` is
  /// this rank's share: the gradient of a sink that all ranks have is the sum over ranks.
  /// @throws std::invalid_argument before anything moves if a local tensor has other sizes.
  template <class Exec, class T, class O, class D, class G>
  void backward(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
                const gradients<G>& grad) {
    base::template require_backend<Exec>();
    this->require_local(name, maskring::detail::check_backward(in, up, grad, this->options_));
    this->template require_same_element<T>(name);
    const int ranks = this->ranks(), rank = this->rank();

    // Calls that add up dq themselves work on all queries each time.
    constexpr bool in_steps = adds_up_dq<Exec, T>;
    // Where all of the rank's own keys are needed, step 0 writes their gradients.
    const bool writes = in_steps && !this->options_.accumulate &&
                        this->needed_at(0).size() == this->kv_size();
    const gradients<float> home =
        this->home_gradients(exec, grad, home_, {!in_steps, !writes});
    const detail::share_sums sums = this->sums_at(exec, home, home_);
    rotation<Exec, T> moving{*this->comm_, exec, this->plan_, keys_,  values_,
                             in.k,         in.v, home.dk,     home.dv};
    for (int step = 0; step <= ranks; ++step) {
      this->group_.clear();
      if (step + 1 < ranks) moving.post(step, this->group_);
      // What this rank computed in the step before goes home, and its own comes home from the rank
      // that worked on it then.
      const bool returns = step >= 2 && !moving.in_place();
      const int worker = (rank + step - 1) % ranks;
      const interval returning = returns ? this->plan_.needed(worker, rank) : interval{};
      const auto [dk_back, dv_back] = pair_of(returned_, returning);
      if (returns) {
        const interval part = this->needed_at(step - 1);
        const auto [dk, dv] = pair_of(computed_[(step - 1) % 2], part);
        const int owner = this->plan_.shard_at(rank, step - 1);
        if (!part.empty()) {
          this->group_.push_back(comm::send(owner, dk.data, dk.size()));
          this->group_.push_back(comm::send(owner, dv.data, dv.size()));
        }
        if (!returning.empty()) {
          this->group_.push_back(comm::receive(worker, dk_back.data, dk_back.size()));
          this->group_.push_back(comm::receive(worker, dv_back.data, dv_back.size()));
        }
      }
      const interval queries = step == ranks ? interval{}
                               : in_steps    ? all_queries_at(step)
                                             : queries_at(step, static_cast<bool>(grad.dsink));
      this->overlap(exec, {"backward", step, queries.empty()}, [&] {
        if (queries.empty()) return;
        const interval part = this->needed_at(step);
        const bool adds = step == 0 ? !writes : moving.in_place();
        const auto [dk, dv] = step == 0 ? std::pair{home.dk.slice(2, part.lo, part.size()),
                                                    home.dv.slice(2, part.lo, part.size())}
                              : moving.in_place() ? moving.sums(step, part)
                                                  : pair_of(computed_[step % 2], part);
        saved<T, O> now{rows_of(in.q, queries), moving.keys(part), moving.values(part),
                        rows_of(in.out, queries), rows_of(in.lse, queries)};
        if constexpr (in_steps) {
          now.sink = in.sink;
          attend_backward_step(exec, now, up, grad, {view<float, 4>{}, dk, dv}, adds, step);
        } else {
          gradients<float> to{rows_of(home.dq, queries), dk, dv};
          if (grad.dsink && step == first_step()) {
            now.sink = in.sink;
            to.dsink = grad.dsink;
          }
          const upstream<D> above{rows_of(up.dout, queries), rows_of(up.dlse, queries)};
          attend_backward(exec, now, above, to, adds, step, queries);
        }
      });
      if (!returning.empty()) this->add_share(exec, dk_back, dv_back, sums, returning.lo);
      if (step + 1 < ranks) moving.advance(step);
    }
    moving.finish();
    this->round_gradients(exec, home, grad);
  }

private:
  static constexpr const char* name = "cp::ring";
  template <class Exec, class T>
  using rotation = detail::rotation<Comm, Exec, T>;
  using query_map = decltype(std::declval<const QLayout&>().map(0));
  using key_map = decltype(std::declval<const KvLayout&>().map(0));
  struct key_gradients {
    detail::kept_buffer<Comm> dk, dv;
  };

  /// A number for each local query of each head.
  view<float, 3> numbers(detail::kept_buffer<Comm>& memory) {
    const index_t extents[] = {this->sizes_.batch, this->sizes_.q_heads, this->q_size()};
    return {memory.template at_least<float>(*this->comm_, extents[0] * extents[1] * extents[2]),
            {extents[0], extents[1], extents[2]}};
  }

  /// The query tile of forward_by_tiles(), if all steps can be computed that way.
  template <class Exec, class T, class O>
  std::optional<tile_shape> step_tile(const Exec& exec, const inputs<T>& in, const results<O>& out,
                                      const rotation<Exec, T>& moving) {
    using local_mask = decltype(mask_at(0, interval{}));
    std::optional<tile_shape> tile;
    const bool fit = moving.all_fit([&](const view<const T, 4>& k, const view<const T, 4>& v) {
      tile = backend<Exec>::template step_tile<local_mask>(exec, inputs<T>{in.q, k, v}, out);
      return tile.has_value();
    });
    const tile_shape wanted = this->options_.tile;
    if (!fit || !tile || this->q_size() == 0) return {}; // no tile where no rank has keys
    if (wanted != tile_shape{} && wanted != *tile) return {};
    if (!tiles_ || tiles_->tile() != tile->q) {
      tiles_.emplace(this->plan_, this->rank(), tile->q);
      parts_ = backend<Exec>::keep(exec, tiles_->parts());
    }
    // Queries that see nothing are step 0's, also where that has no keys.
    if (!tiles_->queries(0).empty() && this->needed_at(0).empty()) return {};
    return tile;
  }

  /// One attention call a step, which knows of each query tile whether it continues, and whether
  /// another will.
  template <class Exec, class T, class O>
  void forward_by_tiles(const Exec& exec, const inputs<T>& in, const results<O>& out,
                        rotation<Exec, T>& moving) {
    const shape& s = this->sizes_;
    const open_tiles open{state_.template tensor<float>(*this->comm_, s.batch, s.q_heads,
                                                        this->q_size(),
                                                        backend<Exec>::state_width(s.v_dim)),
                          numbers(state_lse_), numbers(state_sum_)};
    for (int step = 0; step < this->ranks(); ++step) {
      this->group_.clear();
      if (step + 1 < this->ranks()) moving.post(step, this->group_);
      const interval queries = tiles_->queries(step);
      this->overlap(exec, {"forward", step, queries.empty()}, [&] {
        if (queries.empty()) return;
        const interval keys = this->needed_at(step);
        inputs<T> now{rows_of(in.q, queries), moving.keys(keys), moving.values(keys)};
        now.previous = rows_of(in.previous, queries);
        now.sink = in.sink;
        const results<O> to{rows_of(out.out, queries), rows_of(out.lse, queries)};
        const open_tiles part{rows_of(open.sums, queries), rows_of(open.maximum, queries),
                              rows_of(open.total, queries),
                              parts_.get() + tiles_->first_part(step)};
        const auto mask = mask_at(step, queries);
        const block_map_view& map =
            maps_at(step, queries)
                .forward(exec, now, to, mask, lengths_at(step, queries), this->options_.tile);
        backend<Exec>::forward_step(exec, now, to, mask, map, score_at(step, queries),
                                    this->options_, part);
      });
      if (step + 1 < this->ranks()) moving.advance(step);
    }
    moving.finish();
  }

  /// The queries that a step of the backward pass works on. All of them count, once, for the
  /// gradient of a sink.
  interval queries_at(int step, bool with_sink) const {
    if (with_sink && step == first_step()) return {0, this->q_size()};
    return schedule_.queries(step);
  }
  /// The same where all of them count at each step, and once for what dq is where they see nothing.
  interval all_queries_at(int step) const {
    const bool any = !this->needed_at(step).empty() || step == first_step();
    return {0, any ? this->q_size() : 0};
  }
  /// The first step with keys, and the last.
  int first_step() const {
    for (int step = 0; step < this->ranks(); ++step) {
      if (!this->needed_at(step).empty()) return step;
    }
    return 0;
  }
  int last_step() const {
    for (int step = this->ranks() - 1; step > 0; --step) {
      if (!this->needed_at(step).empty()) return step;
    }
    return 0;
  }

  template <class V>
  static V rows_of(const V& tensor, const interval& part) {
    return tensor ? tensor.slice(2, part.lo, part.size()) : tensor;
  }
  static carried rows_of(const carried& state, const interval& part) {
    return {rows_of(state.out, part), rows_of(state.lse, part)};
  }

  auto queries_from(const interval& queries) const {
    return shard::from_position<query_map>{this->split_.q.map(this->rank()),
                                       static_cast<int>(queries.lo)};
  }
  auto keys_from(int step) const {
    return shard::from_position<key_map>{this->split_.kv.map(this->plan_.shard_at(this->rank(), step)),
                                     static_cast<int>(this->needed_at(step).lo)};
  }
  auto mask_at(int step, const interval& queries) const {
    return shard::rewrite(this->mask_, queries_from(queries), keys_from(step));
  }
  auto score_at(int step, const interval& queries) const {
    return shard::rewrite(this->score_, queries_from(queries), keys_from(step));
  }

  detail::kept_maps& maps_at(int step, const interval& queries) {
    return maps_[{step, queries.lo, queries.hi}];
  }
  map_shape lengths_at(int step, const interval& queries) const {
    return {this->sizes_.batch, this->sizes_.q_heads, queries.size(), this->needed_at(step).size()};
  }

  template <class Exec, class T, class O>
  void attend(const Exec& exec, const inputs<T>& in, const results<O>& out, int step,
              const interval& queries, const open_rows& open) {
    const auto mask = mask_at(step, queries);
    const block_map_view& map =
        maps_at(step, queries)
            .forward(exec, in, out, mask, lengths_at(step, queries), this->options_.tile);
    const auto score = score_at(step, queries);
    if constexpr (open_backend<Exec>) {
      backend<Exec>::forward(exec, in, out, mask, map, score, this->options_, open);
    } else {
      backend<Exec>::forward(exec, in, out, mask, map, score, this->options_);
    }
  }

  template <class Exec, class T, class O, class D>
  void attend_backward(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
                       const gradients<float>& grad, bool adds, int step, const interval& queries) {
    const auto mask = mask_at(step, queries);
    const block_map_view& map =
        maps_at(step, queries).backward(exec, mask, lengths_at(step, queries), this->options_.tile);
    if (adds) {
      options adding = this->options_;
      adding.accumulate = true;
      backend<Exec>::backward(exec, in, up, grad, mask, map, score_at(step, queries), adding);
    } else {
      backend<Exec>::backward_with_new_keys(exec, in, up, grad, mask, map, score_at(step, queries),
                                            this->options_);
    }
  }

  template <class Exec, class T, class O, class D, class G>
  void attend_backward_step(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
                            const gradients<G>& grad, const gradients<float>& keys, bool adds,
                            int step) {
    const interval queries{0, this->q_size()};
    const auto mask = mask_at(step, queries);
    const block_map_view& map =
        maps_at(step, queries).backward(exec, mask, lengths_at(step, queries), this->options_.tile);
    backend<Exec>::backward_step(exec, in, up, grad.dq, keys.with_sink(grad.dsink), mask, map,
                                 score_at(step, queries), this->options_, adds,
                                 step == first_step(), step == last_step());
  }

  /// The gradients of an interval of keys in kept memory, packed: what travels.
  std::pair<view<float, 4>, view<float, 4>> pair_of(key_gradients& memory, const interval& part) {
    const shape& s = this->sizes_;
    return {
        memory.dk.template tensor<float>(*this->comm_, s.batch, s.kv_heads, part.size(), s.qk_dim),
        memory.dv.template tensor<float>(*this->comm_, s.batch, s.kv_heads, part.size(), s.v_dim)};
  }

  detail::schedule schedule_;
  std::optional<detail::tile_schedule> tiles_;
  std::shared_ptr<const std::uint8_t> parts_; // of tiles_, where the backend reads them
  std::map<std::tuple<int, index_t, index_t>, detail::kept_maps> maps_; // by step and queries
  detail::rotation_memory<Comm> keys_, values_;
  detail::kept_buffer<Comm> state_, state_lse_, state_sum_;
  detail::home_memory<Comm> home_;
  key_gradients computed_[2], returned_;
};

template <class Comm, shard::layout Layout, class Mask, class Score = score::none>
ring(Comm&, shape, Layout, Mask, Score = {}, options = {})
    -> ring<Comm, Layout, Layout, Mask, Score>;
template <class Comm, class Q, class Kv, class Mask, class Score = score::none>
ring(Comm&, shape, shards<Q, Kv>, Mask, Score = {}, options = {}) -> ring<Comm, Q, Kv, Mask, Score>;
template <class Comm, shard::layout Layout, class Mask, class Score = score::none>
ring(Comm&, plan, shape, Layout, Mask, Score = {}, options = {})
    -> ring<Comm, Layout, Layout, Mask, Score>;
template <class Comm, class Q, class Kv, class Mask, class Score = score::none>
ring(Comm&, plan, shape, shards<Q, Kv>, Mask, Score = {}, options = {})
    -> ring<Comm, Q, Kv, Mask, Score>;

} // namespace maskring::cp
