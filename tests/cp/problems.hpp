// SPDX-License-Identifier: Apache-2.0
// A whole problem with its results, computed on one rank or split over several.
#pragma once

#include "split.hpp"
#include "support/reference.hpp"

#include <maskring/comm/threads.hpp>
#include <maskring/cp/all_gather.hpp>
#include <maskring/cp/host.hpp>
#include <maskring/cp/ring.hpp>

namespace maskring::testing {

struct case_sizes {
  cp::shape shape;
  index_t q_len = 0, kv_len = 0;
};

/// The inputs of a whole problem; T is the element type.
template <class T = float>
struct whole_inputs {
  whole_inputs(std::uint64_t seed, const case_sizes& s, bool with_sink = false) : sizes{s} {
    std::mt19937_64 random{seed};
    const cp::shape& n = s.shape;
    q = random_tensor<T, 4>(random, {n.batch, n.q_heads, s.q_len, n.qk_dim});
    k = random_tensor<T, 4>(random, {n.batch, n.kv_heads, s.kv_len, n.qk_dim});
    v = random_tensor<T, 4>(random, {n.batch, n.kv_heads, s.kv_len, n.v_dim});
    dout = random_tensor<T, 4>(random, {n.batch, n.q_heads, s.q_len, n.v_dim});
    dlse = random_tensor<float, 3>(random, {n.batch, n.q_heads, s.q_len});
    if (with_sink) sink = random_tensor<float, 1>(random, {n.q_heads});
  }
  view<const float, 1> sink_view() const {
    return sink.extent(0) > 0 ? sink.span() : view<const float, 1>{};
  }

  case_sizes sizes;
  tensor<T, 4> q, k, v, dout;
  tensor<float, 3> dlse;
  tensor<float, 1> sink;
};

/// The results of a whole problem; O is the type of the output, G of the gradients.
template <class O = float, class G = O>
struct whole_results {
  explicit whole_results(const case_sizes& s)
      : out{{s.shape.batch, s.shape.q_heads, s.q_len, s.shape.v_dim}},
        lse{{s.shape.batch, s.shape.q_heads, s.q_len}},
        dq{{s.shape.batch, s.shape.q_heads, s.q_len, s.shape.qk_dim}},
        dk{{s.shape.batch, s.shape.kv_heads, s.kv_len, s.shape.qk_dim}},
        dv{{s.shape.batch, s.shape.kv_heads, s.kv_len, s.shape.v_dim}},
        dsink{{s.shape.q_heads}} {}

  tensor<O, 4> out;
  tensor<float, 3> lse;
  tensor<G, 4> dq, dk, dv;
  tensor<float, 1> dsink;
};

/// Leaves no number in the results, so that whoever forgets one is found out; dsink is written only
/// where there is a sink.
template <class O, class G>
void forget(whole_results<O, G>& r, bool with_sink) {
  constexpr float nothing = std::numeric_limits<float>::quiet_NaN();
  r.out.fill(static_cast<O>(nothing));
  r.lse.fill(nothing);
  for (tensor<G, 4>* gradient : {&r.dq, &r.dk, &r.dv}) gradient->fill(static_cast<G>(nothing));
  if (with_sink) r.dsink.fill(nothing);
}

/// The largest difference of any result.
template <class A, class B>
double largest_error(const A& a, const B& b) {
  double worst = std::max(max_error(a.out, b.out), max_error(a.lse, b.lse));
  worst = std::max({worst, max_error(a.dq, b.dq), max_error(a.dk, b.dk), max_error(a.dv, b.dv)});
  return std::max(worst, max_error(a.dsink, b.dsink));
}

template <class T, class Mask, class Score = score::none>
whole_results<double> reference_results_of(const whole_inputs<T>& in, const Mask& mask,
                                           const Score& score = {}, const options& opt = {}) {
  whole_results<double> out{in.sizes};
  auto given = inputs{*in.q, *in.k, *in.v};
  given.sink = in.sink_view();
  auto forward = reference_forward(given, mask, score, opt);
  auto backward = reference_backward(given, upstream{*in.dout, *in.dlse}, mask, score, opt);
  out.out = std::move(forward.out);
  for_each_index((*forward.lse).extents,
                 [&](auto... i) { out.lse(i...) = static_cast<float>(forward.lse(i...)); });
  out.dq = std::move(backward.dq);
  out.dk = std::move(backward.dk);
  out.dv = std::move(backward.dv);
  for (index_t h = 0; h < out.dsink.extent(0); ++h) {
    out.dsink(h) = given.sink ? static_cast<float>(backward.dsink(h)) : 0.0f;
  }
  return out;
}

template <class O, class G, class T, class Mask, class Score = score::none>
whole_results<O, G> local_results(const whole_inputs<T>& in, const Mask& mask,
                                  const Score& score = {}, const options& opt = {}) {
  whole_results<O, G> r{in.sizes};
  auto given = inputs{*in.q, *in.k, *in.v};
  given.sink = in.sink_view();
  forward(host{1}, given, results{*r.out, *r.lse}, mask, score, opt);
  auto kept = saved{*in.q, *in.k, *in.v, *r.out, *r.lse};
  kept.sink = given.sink;
  auto grad = gradients{*r.dq, *r.dk, *r.dv};
  if (given.sink) grad.dsink = *r.dsink;
  backward(host{1}, kept, upstream{*in.dout, *in.dlse}, grad, mask, score, opt);
  return r;
}

/// The same problem over the ranks of a communicator: `make(comm)` gives the driver, Exec{1} a
/// rank's executor. Shards lie dense or swapped in memory, rank by rank in turn.
template <class O, class G, class Exec = host, class T, class Split, class Make>
whole_results<O, G> split_results(const whole_inputs<T>& in, const Split& split, Make make,
                                  comm::traffic* sent = nullptr, int repeats = 1) {
  whole_results<O, G> r{in.sizes};
  const int ranks = split.q.ranks();
  std::mutex mutex;
  std::vector<tensor<float, 1>> dsink(static_cast<std::size_t>(ranks), r.dsink);
  const comm::traffic moved = comm::run_ranks(ranks, [&](comm::threads& c) {
    const int rank = c.rank();
    const layout order = rank % 2 == 0 ? layout::dense : layout::swapped;
    const auto q = shard_of(in.q, split.q, rank, order), dout = shard_of(in.dout, split.q, rank);
    const auto k = shard_of(in.k, split.kv, rank, order), v = shard_of(in.v, split.kv, rank, order);
    const auto dlse = shard_of(in.dlse, split.q, rank);
    case_sizes mine = in.sizes;
    mine.q_len = split.q.size(rank);
    mine.kv_len = split.kv.size(rank);
    whole_results<O, G> local{mine};
    forget(local, static_cast<bool>(in.sink_view()));
    const Exec exec{1};
    auto driver = make(c);
    for (int i = 0; i < repeats; ++i) {
      auto given = inputs{*q, *k, *v};
      given.sink = in.sink_view();
      driver.forward(exec, given, results{*local.out, *local.lse});
      auto kept = saved{*q, *k, *v, *local.out, *local.lse};
      kept.sink = given.sink;
      auto grad = gradients{*local.dq, *local.dk, *local.dv};
      if (given.sink) grad.dsink = *local.dsink;
      driver.backward(exec, kept, upstream{*dout, *dlse}, grad);
    }
    const std::lock_guard lock{mutex};
    put_shard(r.out, local.out, split.q, rank);
    put_shard(r.lse, local.lse, split.q, rank);
    put_shard(r.dq, local.dq, split.q, rank);
    put_shard(r.dk, local.dk, split.kv, rank);
    put_shard(r.dv, local.dv, split.kv, rank);
    dsink[static_cast<std::size_t>(rank)] = local.dsink;
  });
  for (const auto& share : dsink) {
    for (index_t h = 0; h < r.dsink.extent(0); ++h) r.dsink(h) += share(h);
  }
  if (sent) *sent = moved;
  return r;
}

} // namespace maskring::testing
