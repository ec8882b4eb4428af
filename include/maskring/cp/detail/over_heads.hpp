// SPDX-License-Identifier: Apache-2.0
// Attention whose heads are shared out among ranks: the exchange before and after it.
#pragma once

#include <maskring/cp/detail/head_exchange.hpp>

namespace maskring::cp::detail {

/// Turns calls on shards of a sequence into calls on some of the heads of all of it.
template <class Comm>
class over_heads {
public:
  /// @param queries, keys where the ranks' tokens stand in the sequences that they have together.
  over_heads(Comm& comm, const head_split& split, places queries, places keys)
      : comm_{&comm}, split_{split}, queries_{std::move(queries)}, keys_{std::move(keys)} {}

  void record(timeline* to, int as_rank) { recorder_.set(to, as_rank); }
  interval own_heads() const { return split_.queries(comm_->rank()); }

  /// `attend(inputs, results)` computes this rank's heads.
  template <class Exec, class T, class O, class Attend>
  void forward(const Exec& exec, const inputs<T>& in, const results<O>& out, Attend attend) {
    const auto [q, k, v] = gather_inputs<T>(exec, in);
    inputs<T> now{q, k, v};
    now.sink = part_of_sink(in.sink);
    const results<O> to{query_tensor<O>(out_, in.q, out.out.extent(3)), query_rows(lse_, in.q)};
    if (in.previous.out) {
      const view<float, 4> state = query_tensor<float>(state_, in.q, out.out.extent(3));
      const view<float, 3> lse = query_rows(state_lse_, in.q);
      head_exchange<Comm, Exec> exchange{*comm_, exec, group_, recorder_};
      exchange.to_heads(slots_[0], in.previous.out, state, queries_of(), queries_);
      exchange.to_heads(slots_[1], with_dim(in.previous.lse), with_dim(lse), queries_of(),
                        queries_);
      exchange.run("carried state to heads");
      now.previous = {state, lse};
    }
    recorder_.compute(exec, {"forward"}, [&] { attend(now, to); });
    head_exchange<Comm, Exec> exchange{*comm_, exec, group_, recorder_};
    exchange.to_sequence(slots_[0], view<const O, 4>{to.out}, out.out, queries_of(), queries_);
    if (out.lse) {
      exchange.to_sequence(slots_[1], view<const float, 4>{with_dim(to.lse)}, with_dim(out.lse),
                           queries_of(), queries_);
    }
    exchange.run("results to shards");
  }

  /// `attend(saved, upstream, gradients)` writes the gradients of this rank's heads: in `Whole`,
  /// but in fp32 where they are summed on arrival. They travel in the type of `grad`, or in fp32.
  /// @param home fp32 sums of `grad`, called where they are needed.
  template <class Whole, class Exec, class T, class O, class D, class G, class Attend, class Home>
  void backward(const Exec& exec, const saved<T, O>& in, const upstream<D>& up,
                const gradients<G>& grad, bool accumulate, Attend attend, Home home) {
    using machine = backend<Exec>;
    const auto [q, k, v] = gather_inputs<T>(exec, in);
    const index_t v_dim = in.v.extent(3);
    const view<O, 4> out = query_tensor<O>(out_, in.q, v_dim);
    const view<D, 4> dout = query_tensor<D>(dout_, in.q, v_dim);
    const view<float, 3> lse = query_rows(lse_, in.q);
    upstream<D> above{dout};
    {
      head_exchange<Comm, Exec> exchange{*comm_, exec, group_, recorder_};
      exchange.to_heads(slots_[0], in.out, out, queries_of(), queries_);
      exchange.to_heads(slots_[1], up.dout, dout, queries_of(), queries_);
      exchange.to_heads(slots_[2], with_dim(in.lse), with_dim(lse), queries_of(), queries_);
      if (up.dlse) {
        const view<float, 3> dlse = query_rows(dlse_, in.q);
        exchange.to_heads(slots_[3], with_dim(up.dlse), with_dim(dlse), queries_of(), queries_);
        above.dlse = dlse;
      }
      exchange.run("results to heads");
    }
    saved<T, O> now{q, k, v, out, lse};
    now.sink = part_of_sink(in.sink);
    if (grad.dsink && !accumulate) machine::zero(exec, as_row(grad.dsink));
    const auto run = [&]<class W>(gradients<W> whole, const auto& shards, bool add) {
      if (grad.dsink) whole.dsink = grad.dsink.slice(0, own_heads().lo, own_heads().size());
      recorder_.compute(exec, {"backward"}, [&] { attend(now, above, whole); });
      head_exchange<Comm, Exec> exchange{*comm_, exec, group_, recorder_};
      const auto bring = [&](int slot, const view<const W, 4>& from, const auto& to, auto heads,
                             const places& where) {
        exchange.to_sequence(slots_[slot], from, to, heads, where, add);
      };
      bring(0, whole.dq, shards.dq, queries_of(), queries_);
      bring(1, whole.dk, shards.dk, keys_of(), keys_);
      bring(2, whole.dv, shards.dv, keys_of(), keys_);
      exchange.run("gradients to shards");
    };
    if (accumulate || split_.replicated()) {
      const gradients<float> sums = home();
      run(whole_gradients<float>(in), sums, true);
      if constexpr (!std::is_same_v<G, float>) {
        machine::copy(exec, view<const float, 4>{sums.dq}, grad.dq);
        machine::copy(exec, view<const float, 4>{sums.dk}, grad.dk);
        machine::copy(exec, view<const float, 4>{sums.dv}, grad.dv);
      }
    } else {
      run(whole_gradients<Whole>(in), grad, false);
    }
  }

private:
  auto queries_of() const {
    return [split = split_](int rank) { return split.queries(rank); };
  }
  auto keys_of() const {
    return [split = split_](int rank) { return split.keys(rank); };
  }

  view<const float, 1> part_of_sink(const view<const float, 1>& sink) const {
    return sink ? sink.slice(0, own_heads().lo, own_heads().size()) : sink;
  }

  template <class T, class In>
  std::tuple<view<T, 4>, view<T, 4>, view<T, 4>> gather_inputs(const auto& exec, const In& in) {
    const view<T, 4> q = query_tensor<T>(q_, in.q, in.q.extent(3));
    const view<T, 4> k = key_tensor<T>(k_, in.k, in.k.extent(3));
    const view<T, 4> v = key_tensor<T>(v_, in.k, in.v.extent(3));
    head_exchange<Comm, std::remove_cvref_t<decltype(exec)>> exchange{*comm_, exec, group_,
                                                                      recorder_};
    exchange.to_heads(slots_[0], in.q, q, queries_of(), queries_);
    exchange.to_heads(slots_[1], in.k, k, keys_of(), keys_);
    exchange.to_heads(slots_[2], in.v, v, keys_of(), keys_);
    exchange.run("inputs to heads");
    return {q, k, v};
  }

  template <class W, class In>
  gradients<W> whole_gradients(const In& in) {
    return {query_tensor<W>(dq_, in.q, in.q.extent(3)), key_tensor<W>(dk_, in.k, in.k.extent(3)),
            key_tensor<W>(dv_, in.k, in.v.extent(3))};
  }

  template <class T, class Like>
  view<T, 4> query_tensor(kept_buffer<Comm>& memory, const Like& q, index_t dim) {
    return memory.template tensor<T>(*comm_, q.extent(0), own_heads().size(), queries_.length, dim);
  }
  template <class Like>
  view<float, 3> query_rows(kept_buffer<Comm>& memory, const Like& q) {
    const index_t heads = own_heads().size();
    return {memory.template at_least<float>(*comm_, q.extent(0) * heads * queries_.length),
            {q.extent(0), heads, queries_.length}};
  }
  template <class T, class Like>
  view<T, 4> key_tensor(kept_buffer<Comm>& memory, const Like& k, index_t dim) {
    return memory.template tensor<T>(*comm_, k.extent(0), split_.keys(comm_->rank()).size(),
                                     keys_.length, dim);
  }

  Comm* comm_;
  head_split split_;
  places queries_, keys_;
  std::vector<comm::transfer> group_;
  recorder recorder_;
  exchange_memory<Comm> slots_[4];
  kept_buffer<Comm> q_, k_, v_, out_, lse_, state_, state_lse_, dout_, dlse_, dq_, dk_, dv_;
};

} // namespace maskring::cp::detail
