// SPDX-License-Identifier: Apache-2.0
// A ring or an all-gather, whichever suits the mask and the communicator.
#pragma once

#include <maskring/cp/all_gather.hpp>
#include <maskring/cp/ring.hpp>

#include <optional>

namespace maskring::cp {

/// Attention over sequences that are split over the ranks of `comm`, like cp::ring and called like
/// it: by a cp::all_gather where ranks share memory and need the same keys, so that one copy of
/// them serves all and each pass is one call a rank; else by a cp::ring, which keeps no more than
/// two shards of keys and moves only those that the mask needs.
///
/// Both drivers are compiled for the mask.
template <class Comm, class QLayout, class KvLayout, class Mask, class Score>
class automatic {
public:
  /// As cp::ring.
  automatic(Comm& comm, const shape& sizes, const shards<QLayout, KvLayout>& split,
            const Mask& mask, const Score& score = {}, const options& opt = {})
      : ring_{comm, sizes, split, mask, score, opt} {
    choose(comm, split, mask, score, opt);
  }
  automatic(Comm& comm, const cp::plan& known, const shape& sizes,
            const shards<QLayout, KvLayout>& split, const Mask& mask, const Score& score = {},
            const options& opt = {})
      : ring_{comm, known, sizes, split, mask, score, opt} {
    choose(comm, split, mask, score, opt);
  }

  const cp::plan& plan() const { return ring_.plan(); }
  const cp::shape& sizes() const { return ring_.sizes(); }
  /// Whether it is an all-gather.
  bool gathers() const { return gather_.has_value(); }
  savings saved_work(std::size_t element_bytes) const { return ring_.saved_work(element_bytes); }

  /// As cp::ring::smallest_cut.
  void smallest_cut(index_t rows) { ring_.smallest_cut(rows); }

  void record(timeline* to) {
    with_driver([&](auto& driver) { driver.record(to); });
  }

  /// As cp::ring::forward.
  template <class Exec, class T, class O>
  void forward(const Exec& exec, const inputs<T>& in, const results<O>& out) {
    with_driver([&](auto& driver) { driver.forward(exec, in, out); });
  }

  /// As cp::ring::backward.
  template <class Exec, class T, class O, class D, class G>
  void backward(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
                const gradients<G>& grad) {
    with_driver([&](auto& driver) { driver.backward(exec, in, up, grad); });
  }

private:
  void choose(Comm& comm, const shards<QLayout, KvLayout>& split, const Mask& mask,
              const Score& score, const options& opt) {
    if (detail::keeps_one_copy(comm, plan())) {
      gather_.emplace(comm, plan(), sizes(), split, mask, score, opt);
    }
  }

  template <class Call>
  void with_driver(Call call) {
    if (gather_) {
      call(*gather_);
    } else {
      call(ring_);
    }
  }

  ring<Comm, QLayout, KvLayout, Mask, Score> ring_; // allocates nothing before it is called
  std::optional<all_gather<Comm, QLayout, KvLayout, Mask, Score>> gather_;
};

template <class Comm, shard::layout Layout, class Mask, class Score = score::none>
automatic(Comm&, shape, Layout, Mask, Score = {}, options = {})
    -> automatic<Comm, Layout, Layout, Mask, Score>;
template <class Comm, class Q, class Kv, class Mask, class Score = score::none>
automatic(Comm&, shape, shards<Q, Kv>, Mask, Score = {}, options = {})
    -> automatic<Comm, Q, Kv, Mask, Score>;
template <class Comm, shard::layout Layout, class Mask, class Score = score::none>
automatic(Comm&, plan, shape, Layout, Mask, Score = {}, options = {})
    -> automatic<Comm, Layout, Layout, Mask, Score>;
template <class Comm, class Q, class Kv, class Mask, class Score = score::none>
automatic(Comm&, plan, shape, shards<Q, Kv>, Mask, Score = {}, options = {})
    -> automatic<Comm, Q, Kv, Mask, Score>;

} // namespace maskring::cp
