// SPDX-License-Identifier: Apache-2.0
// Ulysses attention: each rank computes some of the heads over the whole sequence.
#pragma once

#include <maskring/cp/detail/over_heads.hpp>

namespace maskring::cp {

/// Attention over sequences that are split over the ranks of `comm`, like cp::ring and called like
/// it, by an all-to-all that gives each rank all tokens of its share of the heads, and one back.
///
/// One attention call a pass, in global order, under the mask itself. Traffic and memory do not
/// depend on the mask: what a rank sends of queries and results shrinks with the number of ranks.
/// q_heads must be a multiple of the ranks; kv_heads a multiple, or a divisor: then neighbouring
/// ranks have the same key head, and their fp32 gradients of it are summed in a fixed order.
///
/// Method: S. A. Jacobs et al., DeepSpeed Ulysses, 2023.
template <class Comm, class QLayout, class KvLayout, class Mask, class Score>
class ulysses : public detail::driver<Comm, QLayout, KvLayout, Mask, Score> {
  using base = detail::driver<Comm, QLayout, KvLayout, Mask, Score>;

public:
  /// As cp::ring. @throws std::invalid_argument also for numbers of heads that cannot be shared
  /// out.
  ulysses(Comm& comm, const shape& sizes, const shards<QLayout, KvLayout>& split, const Mask& mask,
          const Score& score = {}, const options& opt = {})
      : ulysses{
            comm, sizes, split, mask, score, opt, [&] { return cp::plan{mask, sizes, split}; }} {}
  ulysses(Comm& comm, const cp::plan& known, const shape& sizes,
          const shards<QLayout, KvLayout>& split, const Mask& mask, const Score& score = {},
          const options& opt = {})
      : ulysses{comm, sizes, split, mask, score, opt, [&] { return known; }} {}

  void record(timeline* to) { heads_.record(to, this->rank()); }

  /// As cp::ring::forward.
  template <class Exec, class T, class O>
  void forward(const Exec& exec, const inputs<T>& in, const results<O>& out) {
    base::template require_backend<Exec>();
    this->require_local(name, maskring::detail::check_forward(in, out, this->options_));
    this->template require_same_element<T>(name);
    heads_.forward(exec, in, out, [&](const inputs<T>& now, const results<O>& to) {
      const block_map_view& map =
          maps_.forward(exec, now, to, mask(), lengths(), this->options_.tile);
      backend<Exec>::forward(exec, now, to, mask(), map, score(), this->options_);
    });
  }

  /// As cp::ring::backward.
  template <class Exec, class T, class O, class D, class G>
  void backward(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
                const gradients<G>& grad) {
    base::template require_backend<Exec>();
    this->require_local(name, maskring::detail::check_backward(in, up, grad, this->options_));
    this->template require_same_element<T>(name);
    const auto attend = [&](const saved<T, O>& now, const upstream<D>& above, const auto& to) {
      options opt = this->options_;
      opt.accumulate = false;
      auto fresh = to;
      view<float, 1> dsink;
      if (this->options_.accumulate && to.dsink) {
        dsink = {dsink_.template at_least<float>(*this->comm_, to.dsink.extent(0)),
                 {to.dsink.extent(0)}};
        fresh.dsink = dsink;
      }
      const block_map_view& map = maps_.backward(exec, mask(), lengths(), this->options_.tile);
      backend<Exec>::backward(exec, now, above, fresh, mask(), map, score(), opt);
      if (dsink) {
        backend<Exec>::add(exec, view<const float, 4>{detail::as_row(dsink)},
                           detail::as_row(to.dsink));
      }
    };
    heads_.template backward<G>(exec, in, up, grad, this->options_.accumulate, attend, [&] {
      return this->home_gradients(exec, grad.with_sink({}), home_);
    });
  }

private:
  static constexpr const char* name = "cp::ulysses";

  template <class MakePlan>
  ulysses(Comm& comm, const shape& sizes, const shards<QLayout, KvLayout>& split, const Mask& mask,
          const Score& score, const options& opt, MakePlan make_plan)
      : base{name, comm, sizes, split, mask, score, opt, make_plan},
        heads_{comm, detail::head_split{name, sizes, comm.size()}, places_of(split.q),
               places_of(split.kv)} {}

  template <class Layout>
  static detail::places places_of(const Layout& layout) {
    detail::places out;
    out.length = layout.sequence();
    for (int rank = 0; rank < layout.ranks(); ++rank) {
      out.of.push_back(detail::stretches_of(layout.map(rank), {0, layout.size(rank)}));
    }
    return out;
  }

  int first_head() const { return static_cast<int>(heads_.own_heads().lo); }
  auto mask() const { return detail::of_heads(this->mask_, first_head()); }
  auto score() const { return detail::of_heads(this->score_, first_head()); }

  map_shape lengths() const {
    return {this->sizes_.batch, heads_.own_heads().size(), this->split_.q.sequence(),
            this->split_.kv.sequence()};
  }

  detail::over_heads<Comm> heads_;
  detail::kept_maps maps_;
  detail::kept_buffer<Comm> dsink_;
  detail::home_memory<Comm> home_;
};

template <class Comm, shard::layout Layout, class Mask, class Score = score::none>
ulysses(Comm&, shape, Layout, Mask, Score = {}, options = {})
    -> ulysses<Comm, Layout, Layout, Mask, Score>;
template <class Comm, class Q, class Kv, class Mask, class Score = score::none>
ulysses(Comm&, shape, shards<Q, Kv>, Mask, Score = {}, options = {})
    -> ulysses<Comm, Q, Kv, Mask, Score>;
template <class Comm, shard::layout Layout, class Mask, class Score = score::none>
ulysses(Comm&, plan, shape, Layout, Mask, Score = {}, options = {})
    -> ulysses<Comm, Layout, Layout, Mask, Score>;
template <class Comm, class Q, class Kv, class Mask, class Score = score::none>
ulysses(Comm&, plan, shape, shards<Q, Kv>, Mask, Score = {}, options = {})
    -> ulysses<Comm, Q, Kv, Mask, Score>;

} // namespace maskring::cp
