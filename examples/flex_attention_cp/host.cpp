// SPDX-License-Identifier: Apache-2.0
// The job on the host: one call, or a thread a rank.
#include "problem.hpp"

#include <maskring/cp/ulysses.hpp>
#include <maskring/maskring.hpp>

namespace flex {
namespace {

using namespace maskring;

/// Calls work(score) with the modifier, or with score::none.
template <class Work>
void with_type(const examples::any_score* score, Work work) {
  if (score) {
    work(*score);
  } else {
    work(score::none{});
  }
}

void local(const settings&, const examples::any_mask& mask, const examples::any_score* score,
           whole<float>& x) {
  with_type(score, [&](const auto& change) {
    forward(host(), inputs{x.q.span(), x.k.span(), x.v.span()}, results{x.out.span(), x.lse_span()},
            mask, change);
    backward(host(), saved{x.q.span(), x.k.span(), x.v.span(), x.out.span(), x.lse_span()},
             upstream{x.dout.span()}, gradients{x.dq.span(), x.dk.span(), x.dv.span()}, mask,
             change);
  });
}

template <class Driver>
void run_rank(Driver driver, whole<float>& mine) {
  driver.forward(host(1), inputs{mine.q.span(), mine.k.span(), mine.v.span()},
                 results{mine.out.span(), mine.lse_span()});
  driver.backward(
      host(1), saved{mine.q.span(), mine.k.span(), mine.v.span(), mine.out.span(), mine.lse_span()},
      upstream{mine.dout.span()}, gradients{mine.dq.span(), mine.dk.span(), mine.dv.span()});
}

void split(const settings& s, const examples::any_mask& mask, const examples::any_score* score,
           const examples::any_layout& layout, whole<float>& x) {
  const cp::shape shape{s.n.batch, s.n.heads, s.n.kv_heads, s.n.dim, s.n.v_dim};
  comm::run_ranks(s.ranks, [&](comm::threads& comm) {
    const int rank = comm.rank();
    whole<float> mine{s.n, static_cast<int>(layout.size(rank))};
    const auto load = [](const float* all, float* part, int dim) { std::copy_n(all, dim, part); };
    const auto store = [](float* all, const float* part, int dim) { std::copy_n(part, dim, all); };
    each_token(x.q, mine.q, layout.map(rank), load);
    each_token(x.k, mine.k, layout.map(rank), load);
    each_token(x.v, mine.v, layout.map(rank), load);
    each_token(x.dout, mine.dout, layout.map(rank), load);
    with_type(score, [&](const auto& change) {
      if (s.method == "ring") {
        run_rank(cp::ring{comm, shape, layout, mask, change}, mine);
      } else if (s.method == "all-gather") {
        run_rank(cp::all_gather{comm, shape, layout, mask, change}, mine);
      } else if (s.method == "automatic") {
        run_rank(cp::automatic{comm, shape, layout, mask, change}, mine);
      } else {
        run_rank(cp::ulysses{comm, shape, layout, mask, change}, mine);
      }
    });
    each_token(x.out, mine.out, layout.map(rank), store);
    each_token(x.dq, mine.dq, layout.map(rank), store);
    each_token(x.dk, mine.dk, layout.map(rank), store);
    each_token(x.dv, mine.dv, layout.map(rank), store);
  });
}

} // namespace

const device_calls on_host{local, split};

} // namespace flex
