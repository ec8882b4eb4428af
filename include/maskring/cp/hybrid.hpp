// SPDX-License-Identifier: Apache-2.0
// Two dimensions of ranks: heads are shared out inside, keys and values go round a ring outside.
#pragma once

#include <maskring/comm/split.hpp>
#include <maskring/cp/detail/over_heads.hpp>
#include <maskring/cp/ring.hpp>
#include <maskring/shard/subdivided.hpp>

namespace maskring::cp {

/// Attention over sequences that are split over the ranks of `comm`, like cp::ring and called like
/// it, on a mesh of ranks: neighbours that hold the pieces of one shard of a `subdivided` layout
/// exchange heads (as cp::ulysses), and ranks with the same heads form a ring over the shards.
///
/// ```cpp
/// const shard::zigzag outer{tokens, comm.size() / 4};
/// cp::hybrid driver{comm, sizes, shard::subdivided{outer, 4}, mask};
/// ```
/// Numbers of heads as cp::ulysses, for the ranks inside. Put those on one machine: all that they
/// exchange is proportional to the queries, what goes round the ring only to what the plan lets
/// pass.
///
/// Method: J. Fang and S. Zhao, USP: A Unified Sequence Parallelism Approach, 2024.
template <class Comm, class QOuter, class KvOuter, class Mask, class Score>
class hybrid : public detail::driver<Comm, shard::subdivided<QOuter>, shard::subdivided<KvOuter>,
                                     Mask, Score> {
  using q_layout = shard::subdivided<QOuter>;
  using kv_layout = shard::subdivided<KvOuter>;
  using base = detail::driver<Comm, q_layout, kv_layout, Mask, Score>;
  using part_comm = decltype(comm::split(std::declval<Comm&>(), 0, 0));
  using part_mask = detail::mask_of_heads<Mask>;
  using part_score = decltype(detail::of_heads(std::declval<Score>(), 0));

public:
  /// As cp::ring. @throws std::invalid_argument also for numbers of heads that cannot be shared
  /// out.
  hybrid(Comm& comm, const shape& sizes, const shards<q_layout, kv_layout>& split, const Mask& mask,
         const Score& score = {}, const options& opt = {})
      : hybrid{comm,
               sizes,
               split,
               mask,
               score,
               opt,
               [&] {
                 return cp::plan{mask, sizes, split};
               },
               [&](const shards<QOuter, KvOuter>& outer) {
                 return cp::plan{mask, sizes, outer};
               }} {}

  /// With plans made before, of the ranks and of the ring of shards, from a mask that the host can
  /// ask.
  hybrid(Comm& comm, const cp::plan& known, const cp::plan& known_ring, const shape& sizes,
         const shards<q_layout, kv_layout>& split, const Mask& mask, const Score& score = {},
         const options& opt = {})
      : hybrid{comm,
               sizes,
               split,
               mask,
               score,
               opt,
               [&] { return known; },
               [&](const shards<QOuter, KvOuter>&) { return known_ring; }} {}

  hybrid(const hybrid&) = delete; // its parts point to one another

  void record(timeline* to) {
    heads_.record(to, this->rank());
    ring_.record(to, this->rank());
  }

  /// As cp::ring::smallest_cut.
  void smallest_cut(index_t rows) { ring_.smallest_cut(rows); }

  /// As cp::ring::forward.
  template <class Exec, class T, class O>
  void forward(const Exec& exec, const inputs<T>& in, const results<O>& out) {
    base::template require_backend<Exec>();
    this->require_local(name, maskring::detail::check_forward(in, out, this->options_));
    this->template require_same_element<T>(name);
    heads_.forward(exec, in, out, [&](const inputs<T>& now, const results<O>& to) {
      ring_.forward(exec, now, to);
    });
  }

  /// As cp::ring::backward.
  template <class Exec, class T, class O, class D, class G>
  void backward(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
                const gradients<G>& grad) {
    base::template require_backend<Exec>();
    this->require_local(name, maskring::detail::check_backward(in, up, grad, this->options_));
    this->template require_same_element<T>(name);
    const auto attend = [&](const saved<T, O>& now, const upstream<D>& above,
                            const gradients<float>& to) {
      gradients<float> fresh = to;
      view<float, 1> dsink;
      if (to.dsink) {
        dsink = {dsink_.template at_least<float>(*this->comm_, to.dsink.extent(0)),
                 {to.dsink.extent(0)}};
        fresh.dsink = dsink;
      }
      ring_.backward(exec, now, above, fresh);
      if (dsink) {
        backend<Exec>::add(exec, view<const float, 4>{detail::as_row(dsink)},
                           detail::as_row(to.dsink));
      }
    };
    // In fp32, where the ring sums them up.
    heads_.template backward<float>(exec, in, up, grad, this->options_.accumulate, attend, [&] {
      return this->home_gradients(exec, grad.with_sink({}), home_);
    });
  }

private:
  static constexpr const char* name = "cp::hybrid";

  template <class MakePlan, class MakeRingPlan>
  hybrid(Comm& comm, const shape& sizes, const shards<q_layout, kv_layout>& split, const Mask& mask,
         const Score& score, const options& opt, MakePlan make_plan, MakeRingPlan make_ring_plan)
      : base{name, comm, sizes, split, mask, score, opt, make_plan},
        heads_split_{name, sizes, checked_parts(split)},
        inner_{comm::split(comm, comm.rank() / parts(), comm.rank())},
        outer_{comm::split(comm, comm.rank() % parts(), comm.rank())},
        heads_{inner_, heads_split_, places_of(split.q), places_of(split.kv)},
        ring_{outer_,
              make_ring_plan({split.q.outer(), split.kv.outer()}),
              heads_split_.part(),
              shards<QOuter, KvOuter>{split.q.outer(), split.kv.outer()},
              detail::of_heads(mask, first_head()),
              detail::of_heads(score, first_head()),
              without_accumulate(opt)} {}

  static int checked_parts(const shards<q_layout, kv_layout>& split) {
    maskring::detail::require(split.q.parts() == split.kv.parts(), name, ": the layouts have ",
                              split.q.parts(), " and ", split.kv.parts(),
                              " parts, expected the same");
    return split.q.parts();
  }
  static options without_accumulate(options opt) {
    opt.accumulate = false;
    return opt;
  }
  int parts() const { return heads_split_.ranks(); }
  int first_head() const { return static_cast<int>(heads_.own_heads().lo); }

  /// The pieces of this rank's shard, one behind the other.
  template <class Layout>
  detail::places places_of(const Layout& layout) const {
    detail::places out;
    for (int i = 0; i < parts(); ++i) {
      const index_t count = layout.size(outer_.rank() * parts() + i);
      out.of.push_back({});
      if (count > 0) out.of.back().push_back({0, count, out.length, 1});
      out.length += count;
    }
    return out;
  }

  detail::head_split heads_split_;
  part_comm inner_, outer_;
  detail::over_heads<part_comm> heads_;
  ring<part_comm, QOuter, KvOuter, part_mask, part_score> ring_;
  detail::kept_buffer<Comm> dsink_;
  detail::home_memory<Comm> home_;
};

template <class Comm, class Outer, class Mask, class Score = score::none>
hybrid(Comm&, shape, shard::subdivided<Outer>, Mask, Score = {}, options = {})
    -> hybrid<Comm, Outer, Outer, Mask, Score>;
template <class Comm, class Q, class Kv, class Mask, class Score = score::none>
hybrid(Comm&, shape, shards<shard::subdivided<Q>, shard::subdivided<Kv>>, Mask, Score = {},
       options = {}) -> hybrid<Comm, Q, Kv, Mask, Score>;
template <class Comm, class Outer, class Mask, class Score = score::none>
hybrid(Comm&, plan, plan, shape, shard::subdivided<Outer>, Mask, Score = {}, options = {})
    -> hybrid<Comm, Outer, Outer, Mask, Score>;
template <class Comm, class Q, class Kv, class Mask, class Score = score::none>
hybrid(Comm&, plan, plan, shape, shards<shard::subdivided<Q>, shard::subdivided<Kv>>, Mask,
       Score = {}, options = {}) -> hybrid<Comm, Q, Kv, Mask, Score>;

} // namespace maskring::cp
