// SPDX-License-Identifier: Apache-2.0
// The forward pass of a ring.
#pragma once

#include <maskring/cp/detail/ring_steps.hpp>
#include <maskring/cp/detail/tile_schedule.hpp>

namespace maskring::cp::detail {

/// @tparam Steps ring_steps, or what builds on it.
template <class Steps>
class ring_forward : public Steps {
  using Comm = typename Steps::communicator;

protected:
  using Steps::Steps;

  template <class Exec, class T, class O>
  void run_forward(const Exec& exec, const inputs<T>& in, const results<O>& out) {
    const bool carries = this->schedule_.carries();
    rotation<Comm, Exec, T> moving{*this->comm_,  exec, this->plan_, this->keys_,
                                   this->values_, in.k, in.v};
    if constexpr (stepping_backend<Exec>) {
      if (const auto tile = step_tile(exec, in, out, moving)) {
        forward_by_tiles(exec, in, out, moving, *tile);
        return;
      }
    }

    // The state between steps: in the results themselves where they hold floats.
    view<float, 4> state;
    if constexpr (std::is_same_v<O, float>) {
      state = out.out;
    } else if (carries) {
      state = state_tensor(this->sizes_.v_dim);
    }
    view<float, 3> lse = out.lse, sum;
    if (!lse && carries) lse = numbers(state_lse_);
    if (open_backend<Exec> && carries) sum = numbers(state_sum_);

    for (int step = 0; step < this->ranks(); ++step) {
      this->group_.clear();
      if (step + 1 < this->ranks()) moving.post(step, this->group_);
      const std::vector<piece>& pieces = this->schedule_.pieces(step);
      this->overlap(exec, {"forward", step, pieces.empty()}, [&] {
        const interval keys = this->needed_at(step);
        for (const piece& p : pieces) {
          inputs<T> now{this->rows_of(in.q, p.queries), moving.keys(keys), moving.values(keys)};
          now.previous = this->rows_of(p.first ? in.previous : carried{state, lse}, p.queries);
          const open_rows open{this->rows_of(sum, p.queries), !p.first, !p.last};
          const view<float, 3> piece_lse = this->rows_of(lse, p.queries);
          if (p.last) {
            now.sink = in.sink;
            attend(exec, now, results<O>{this->rows_of(out.out, p.queries), piece_lse}, step,
                   p.queries, open);
          } else {
            attend(exec, now, results<float>{this->rows_of(state, p.queries), piece_lse}, step,
                   p.queries, open);
          }
        }
      });
      if (step + 1 < this->ranks()) moving.advance(step);
    }
    moving.finish();
  }

private:
  /// A number for each local query of each head.
  view<float, 3> numbers(kept_buffer<Comm>& memory) {
    const index_t extents[] = {this->sizes_.batch, this->sizes_.q_heads, this->q_size()};
    return {memory.template at_least<float>(*this->comm_, extents[0] * extents[1] * extents[2]),
            {extents[0], extents[1], extents[2]}};
  }
  /// Sums of the local queries, where the backward pass will sum up dk: large enough for that too,
  /// so that a captured forward pass keeps its memory.
  view<float, 4> state_tensor(index_t width) {
    const shape& s = this->sizes_;
    const index_t count = s.q_heads * this->q_size() * width;
    const index_t later = s.kv_heads * this->kv_size() * s.qk_dim;
    return {this->home_.dk.template at_least<float>(*this->comm_, s.batch * max(count, later)),
            {s.batch, s.q_heads, this->q_size(), width}};
  }

  /// The tile of forward_by_tiles(), if all steps can be computed that way.
  template <class Exec, class T, class O>
  std::optional<tile_shape> step_tile(const Exec& exec, const inputs<T>& in, const results<O>& out,
                                      const rotation<Comm, Exec, T>& moving) {
    using local_mask = decltype(this->mask_at(0, {}, {}));
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
                        rotation<Comm, Exec, T>& moving, const tile_shape& tile) {
    const open_tiles open{state_tensor(backend<Exec>::state_width(this->sizes_.v_dim)),
                          numbers(state_lse_), numbers(state_sum_)};
    for (int step = 0; step < this->ranks(); ++step) {
      this->group_.clear();
      if (step + 1 < this->ranks()) moving.post(step, this->group_);
      const interval queries = tiles_->queries(step);
      this->overlap(exec, {"forward", step, queries.empty()}, [&] {
        if (queries.empty()) return;
        const interval keys = this->needed_at(step);
        inputs<T> now{this->rows_of(in.q, queries), moving.keys(keys), moving.values(keys)};
        now.previous = this->rows_of(in.previous, queries);
        now.sink = in.sink;
        const results<O> to{this->rows_of(out.out, queries), this->rows_of(out.lse, queries)};
        const open_tiles part{
            this->rows_of(open.sums, queries), this->rows_of(open.maximum, queries),
            this->rows_of(open.total, queries), parts_.get() + tiles_->first_part(step)};
        const auto mask = this->mask_at(step, queries, keys);
        const block_map_view& map =
            this->maps_at(step, queries, keys)
                .forward(exec, now, to, mask, this->lengths_of(queries, keys), tile);
        backend<Exec>::forward_step(exec, now, to, mask, map, this->score_at(step, queries, keys),
                                    this->options_, part);
      });
      if (step + 1 < this->ranks()) moving.advance(step);
    }
    moving.finish();
  }

  template <class Exec, class T, class O>
  void attend(const Exec& exec, const inputs<T>& in, const results<O>& out, int step,
              const interval& queries, const open_rows& open) {
    const interval& keys = this->needed_at(step);
    const auto mask = this->mask_at(step, queries, keys);
    const block_map_view& map =
        this->maps_at(step, queries, keys)
            .forward(exec, in, out, mask, this->lengths_of(queries, keys), this->options_.tile);
    const auto score = this->score_at(step, queries, keys);
    if constexpr (open_backend<Exec>) {
      backend<Exec>::forward(exec, in, out, mask, map, score, this->options_, open);
    } else {
      backend<Exec>::forward(exec, in, out, mask, map, score, this->options_);
    }
  }

  std::optional<tile_schedule> tiles_;
  std::shared_ptr<const std::uint8_t> parts_; // of tiles_, where the backend reads them
  kept_buffer<Comm> state_lse_, state_sum_;
};

} // namespace maskring::cp::detail
