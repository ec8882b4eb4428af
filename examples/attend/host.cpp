// SPDX-License-Identifier: Apache-2.0
// The work on the host, on one rank or on several.
#include "job.hpp"
#include "masks.hpp"
#include "support/any_layout.hpp"
#include "support/any_score.hpp"

#include <maskring/maskring.hpp>

#include <algorithm>
#include <thread>

namespace attend {
namespace {

using namespace maskring;
using examples::any_layout;
using examples::any_mask;
using examples::npy_array;

template <class T>
view<T, 4> tensor(npy_array& a) {
  return {a.data<T>(), {a.shape[0], a.shape[1], a.shape[2], a.shape[3]}};
}
template <class T>
view<const T, 4> tensor(const npy_array& a) {
  return {a.data<T>(), {a.shape[0], a.shape[1], a.shape[2], a.shape[3]}};
}

/// The tensors of a call, or a part of their batch entries and heads.
template <class T>
struct tensors {
  view<const T, 4> q, k, v, grad_out;
  view<T, 4> out, dq, dk, dv;
  view<float, 3> lse;

  tensors part(index_t batch, index_t batches, index_t kv_head, index_t kv_heads,
               index_t group) const {
    const auto cut = [&](auto t, index_t factor) {
      return t.slice(0, batch, batches).slice(1, kv_head * factor, kv_heads * factor);
    };
    return {cut(q, group),  cut(k, 1),  cut(v, 1),  cut(grad_out, group), cut(out, group),
            cut(dq, group), cut(dk, 1), cut(dv, 1), cut(lse, group)};
  }
};

/// Splits [0, n) into as many equal parts as possible, but no more than `most`.
index_t equal_parts(index_t n, index_t most) {
  for (index_t parts = std::min(n, most); parts > 1; --parts) {
    if (n % parts == 0) return parts;
  }
  return 1;
}

/// Calls work(part) for equal parts of the batch and the heads, one after the other: what they
/// share (block maps, a plan) is made once, and between two of them the progress shows.
template <class T, class Work>
void in_parts(const tensors<T>& all, const cp::shape& part, Work work) {
  const index_t group = part.kv_heads > 0 ? part.q_heads / part.kv_heads : 1;
  for (index_t b = 0; b < all.q.extent(0); b += part.batch) {
    for (index_t h = 0; h < all.k.extent(1); h += part.kv_heads) {
      work(all.part(b, part.batch, h, part.kv_heads, group));
    }
  }
}

/// What is done at a time: all, where the mask or the score modifier tells batch entries or heads
/// apart, since these are numbered anew in each part.
cp::shape part_of(const cp::shape& whole, bool alike) {
  constexpr index_t most = 32;
  cp::shape part = whole;
  if (!alike) return part;
  const index_t batches = equal_parts(whole.batch, most);
  const index_t heads = equal_parts(whole.kv_heads, most / batches);
  part.batch /= batches;
  part.q_heads /= heads;
  part.kv_heads /= heads;
  return part;
}

template <class T, class Score>
void run_local(const tensors<T>& all, const job& work, const any_mask& mask, const Score& score,
               const cp::shape& part, examples::progress& shown) {
  const options opt{.scale = work.scale};
  const block_map map =
      make_block_map(mask, {part.batch, part.q_heads, work.q_len(), work.kv_len()}, opt.tile);
  in_parts(all, part, [&](const tensors<T>& t) {
    forward(host{}, inputs{t.q, t.k, t.v}, results{t.out, t.lse}, mask, map, score, opt);
    if (work.backward) {
      backward(host{}, saved{t.q, t.k, t.v, t.out, t.lse}, upstream{t.grad_out},
               gradients{t.dq, t.dk, t.dv}, mask, map, score, opt);
    }
    shown.advance();
  });
}

/// A rank's tokens of a tensor, in memory of their own.
template <class T>
class shard_of {
public:
  shard_of(const any_layout& layout, int rank) : map_{layout.map(rank)}, size_{layout.size(rank)} {}

  template <class U, int Rank>
  view<T, Rank> like(const view<U, Rank>& whole) {
    view<T, Rank> out;
    index_t stride = 1;
    for (int d = Rank - 1; d >= 0; --d) {
      out.extents[d] = d == 2 ? size_ : whole.extent(d);
      out.strides[d] = stride;
      stride *= out.extents[d];
    }
    memory_.resize(static_cast<std::size_t>(stride));
    out.data = memory_.data();
    return out;
  }
  /// Between the shard and its places in the whole.
  template <class U, int Rank, class Copy>
  void each(const view<U, Rank>& whole, const view<T, Rank>& part, Copy copy) const {
    for (index_t b = 0; b < whole.extent(0); ++b) {
      for (index_t h = 0; h < whole.extent(1); ++h) {
        for (index_t i = 0; i < size_; ++i) {
          const index_t at = map_(static_cast<int>(i));
          if constexpr (Rank == 3) {
            copy(whole(b, h, at), part(b, h, i));
          } else {
            for (index_t d = 0; d < whole.extent(3); ++d)
              copy(whole(b, h, at, d), part(b, h, i, d));
          }
        }
      }
    }
  }
  view<T, 4> load(const view<const T, 4>& whole) {
    const view<T, 4> out = like(whole);
    each(whole, out, [](const T& from, T& to) { to = from; });
    return out;
  }
  template <int Rank>
  void store(const view<T, Rank>& whole, const view<T, Rank>& part) const {
    each(whole, part, [](T& to, const T& from) { to = from; });
  }

private:
  examples::any_map map_;
  index_t size_;
  std::vector<T> memory_;
};

/// One rank's share: its shards are copied out of the whole tensors and its results back.
template <class T, class Driver>
void run_rank(const tensors<T>& all, const job& work, const cp::shape& part, Driver& driver,
              const host& machine, const cp::shards<any_layout, any_layout>& split, int rank,
              examples::progress& shown) {
  const auto rows = [&] { return shard_of<T>{split.q, rank}; };
  const auto keys = [&] { return shard_of<T>{split.kv, rank}; };
  in_parts(all, part, [&](const tensors<T>& t) {
    auto q_memory = rows(), out_memory = rows(), dout_memory = rows(), dq_memory = rows();
    auto k_memory = keys(), v_memory = keys(), dk_memory = keys(), dv_memory = keys();
    shard_of<float> lse_memory{split.q, rank};
    const auto q = q_memory.load(t.q), k = k_memory.load(t.k), v = v_memory.load(t.v);
    const auto out = out_memory.like(t.out);
    const auto lse = lse_memory.like(t.lse);
    driver.forward(machine, inputs{q, k, v}, results{out, lse});
    out_memory.store(t.out, out);
    lse_memory.store(t.lse, lse);
    if (work.backward) {
      const auto dout = dout_memory.load(t.grad_out);
      const auto dq = dq_memory.like(t.dq), dk = dk_memory.like(t.dk), dv = dv_memory.like(t.dv);
      driver.backward(machine, saved{q, k, v, out, lse}, upstream{dout}, gradients{dq, dk, dv});
      dq_memory.store(t.dq, dq);
      dk_memory.store(t.dk, dk);
      dv_memory.store(t.dv, dv);
    }
    shown.advance();
  });
}

template <class T, class Score>
void run_ranks(const tensors<T>& all, const job& work, const any_mask& mask, const Score& score,
               const cp::shape& part, examples::progress& shown) {
  const cp::shards split{any_layout{work.layout, work.q_len(), work.ranks},
                         any_layout{work.layout, work.kv_len(), work.ranks}};
  const int processors = static_cast<int>(std::thread::hardware_concurrency());
  const host machine{std::max(1, processors / work.ranks)};
  const options opt{.scale = work.scale};
  comm::run_ranks(work.ranks, [&](comm::threads& c) {
    if (work.method == "ring") {
      cp::ring driver{c, part, split, mask, score, opt};
      run_rank(all, work, part, driver, machine, split, c.rank(), shown);
    } else {
      cp::all_gather driver{c, part, split, mask, score, opt};
      run_rank(all, work, part, driver, machine, split, c.rank(), shown);
    }
  });
}

/// Whether the mask depends on the batch entry or the head.
bool tells_apart(const any_mask& mask, const examples::mask_shape& n) {
  if (index_t{n.batch} * n.heads * n.q_len * n.kv_len == 0) return false;
  const kleene everywhere =
      truth_of(mask, {{0, n.q_len - 1}, {0, n.kv_len - 1}, {0, n.batch - 1}, {0, n.heads - 1}});
  return (everywhere.depends() & (batch_axis | head_axis)) != 0;
}

template <class T>
void run(job& work) {
  const job& given = work;
  tensors<T> all{};
  all.q = tensor<T>(given.q);
  all.k = tensor<T>(given.k);
  all.v = tensor<T>(given.v);
  all.out = tensor<T>(work.out);
  all.lse = view<float, 3>{work.lse.data<float>(),
                           {work.lse.shape[0], work.lse.shape[1], work.lse.shape[2]}};
  if (work.backward) {
    all.grad_out = tensor<T>(given.grad_out);
    all.dq = tensor<T>(work.dq);
    all.dk = tensor<T>(work.dk);
    all.dv = tensor<T>(work.dv);
  }
  masks known{work.document_lengths, work.mask_shape()};
  const any_mask mask = known(work.mask);
  const cp::shape part =
      part_of(work.sizes(), work.score == "none" && !tells_apart(mask, work.mask_shape()));
  const index_t parts =
      part.batch * part.kv_heads == 0
          ? 1
          : (work.sizes().batch / part.batch) * (work.sizes().kv_heads / part.kv_heads);
  examples::progress shown{"attend", static_cast<int>(parts) * work.ranks};
  const auto compute = [&](const auto& score) {
    if (work.ranks == 1) {
      run_local(all, work, mask, score, part, shown);
    } else {
      run_ranks(all, work, mask, score, part, shown);
    }
  };
  if (work.score == "none") {
    compute(score::none{});
  } else {
    examples::score_library scores{work.mask_shape()};
    compute(scores(work.score));
  }
}

} // namespace

void run_on_host(job& work) {
  if (work.q.dtype == "<f4") {
    run<float>(work);
  } else {
    run<float16>(work);
  }
}

} // namespace attend
