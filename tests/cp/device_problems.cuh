// SPDX-License-Identifier: Apache-2.0
// A whole problem on one device, or split over ranks that share devices.
#pragma once

#include "../../examples/support/any_layout.hpp"
#include "cuda/attention.cuh"
#include "problems.hpp"

#include <maskring/comm/capture.cuh>
#include <maskring/cp/automatic.hpp>
#include <maskring/cp/cuda.cuh>
#include <maskring/cp/hybrid.hpp>
#include <maskring/cp/ulysses.hpp>

namespace maskring::testing {

using examples::any_layout;
inline constexpr auto test_dims = cuda::unpacked(cuda::head_dims<64>);

/// One rank's tensors on the device, its stream and its calls.
template <class O, class G, class T>
class device_part {
public:
  device_part(const tensor<T, 4>& q, const tensor<T, 4>& k, const tensor<T, 4>& v,
              const tensor<T, 4>& dout, const tensor<float, 3>& dlse, const tensor<float, 1>& sink,
              const case_sizes& sizes)
      : found{sizes},
        stream_{comm::detail::make_stream()},
        q_{q},
        k_{k},
        v_{v},
        dout_{dout},
        out_{found.out},
        dq_{found.dq},
        dk_{found.dk},
        dv_{found.dv},
        lse_{found.lse},
        dlse_{dlse},
        sink_{sink},
        dsink_{found.dsink},
        with_sink_{sink.extent(0) > 0} {
    // Copies of pageable memory may end after the call; the new stream does not wait for them.
    comm::detail::require_cuda(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
    clear();
  }

  cudaStream_t stream() const { return stream_.get(); }
  auto exec() { return cuda::on(stream(), scratch_, test_dims); }

  template <class Forward, class Backward>
  void run(Forward forward, Backward backward) {
    inputs given{*q_, *k_, *v_};
    saved kept{*q_, *k_, *v_, *out_, *lse_};
    gradients grad{*dq_, *dk_, *dv_};
    if (with_sink_) {
      given.sink = *sink_;
      kept.sink = *sink_;
      grad.dsink = *dsink_;
    }
    forward(given, results{*out_, *lse_});
    backward(kept, upstream{*dout_, *dlse_}, grad);
  }
  void wait() const {
    comm::detail::require_cuda(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");
  }
  const whole_results<O, G>& read() {
    wait();
    out_.read(found.out), lse_.read(found.lse), dsink_.read(found.dsink);
    dq_.read(found.dq), dk_.read(found.dk), dv_.read(found.dv);
    return found;
  }
  /// Leaves huge numbers in the results, so that whoever forgets one is found out; dsink is written
  /// only where there is a sink.
  void clear() {
    const auto fill = [&](const auto& tensor) {
      const auto [data, bytes] = tensor.memory();
      comm::detail::require_cuda(cudaMemsetAsync(data, 0x7f, bytes, stream()), "cudaMemsetAsync");
    };
    fill(out_), fill(lse_), fill(dq_), fill(dk_), fill(dv_);
    if (with_sink_) fill(dsink_);
  }

  whole_results<O, G> found;

private:
  comm::detail::stream stream_;
  cuda::workspace scratch_;
  on_device<T, 4> q_, k_, v_, dout_;
  on_device<O, 4> out_;
  on_device<G, 4> dq_, dk_, dv_;
  on_device<float, 3> lse_, dlse_;
  on_device<float, 1> sink_, dsink_;
  bool with_sink_;
};

/// One rank's shard of a problem whose queries and keys are split alike.
template <class T, class Split>
device_part<T, T, T> part_of(const whole_inputs<T>& in, const Split& split, int rank) {
  case_sizes mine = in.sizes;
  mine.q_len = mine.kv_len = split.size(rank);
  return {shard_of(in.q, split, rank),
          shard_of(in.k, split, rank),
          shard_of(in.v, split, rank),
          shard_of(in.dout, split, rank),
          shard_of(in.dlse, split, rank),
          in.sink,
          mine};
}

template <class O, class G, class T, class Mask, class Score = score::none>
whole_results<O, G> device_results(const whole_inputs<T>& in, const Mask& mask,
                                   const Score& score = {}, const options& opt = {}) {
  device_part<O, G, T> part{in.q, in.k, in.v, in.dout, in.dlse, in.sink, in.sizes};
  const auto exec = part.exec();
  part.run([&](const auto& given, const auto& out) { forward(exec, given, out, mask, score, opt); },
           [&](const auto& kept, const auto& up, const auto& grad) {
             backward(exec, kept, up, grad, mask, score, opt);
           });
  return part.read();
}

inline std::vector<int> all_devices() {
  int count = 0;
  comm::detail::require_cuda(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  std::vector<int> out(static_cast<std::size_t>(count));
  std::iota(out.begin(), out.end(), 0);
  return out;
}

/// The same over ranks, on all devices there are: `make(comm)` gives the driver. `replays` > 0: the
/// calls are run once, then captured, and the graph is launched as often.
template <class O, class G, class T, class Split, class Make>
whole_results<O, G> device_split_results(const whole_inputs<T>& in, const Split& split, Make make,
                                         int replays = 0, comm::traffic* sent = nullptr,
                                         bool in_place = true) {
  whole_results<O, G> r{in.sizes};
  std::mutex mutex;
  std::vector<tensor<float, 1>> dsink(static_cast<std::size_t>(split.q.ranks()), r.dsink);
  const comm::local_options how{
      .devices = all_devices(), .turns = replays > 0, .in_place = in_place};
  const comm::traffic moved = comm::run_local(
      split.q.ranks(),
      [&](comm::local& c) {
        const int rank = c.rank();
        const layout order = rank % 2 == 0 ? layout::dense : layout::swapped;
        case_sizes mine = in.sizes;
        mine.q_len = split.q.size(rank);
        mine.kv_len = split.kv.size(rank);
        device_part<O, G, T> part{shard_of(in.q, split.q, rank, order),
                                  shard_of(in.k, split.kv, rank, order),
                                  shard_of(in.v, split.kv, rank, order),
                                  shard_of(in.dout, split.q, rank),
                                  shard_of(in.dlse, split.q, rank),
                                  in.sink,
                                  mine};
        const auto exec = part.exec();
        auto driver = make(c);
        const auto both = [&] {
          part.run([&](const auto& given, const auto& out) { driver.forward(exec, given, out); },
                   [&](const auto& kept, const auto& up, const auto& grad) {
                     driver.backward(exec, kept, up, grad);
                   });
        };
        both();
        if (replays > 0) {
          const int token = 0;
          const auto meet = [&] { c.share(std::as_bytes(std::span{&token, 1})); };
          const comm::captured_graph graph = comm::capture(c, part.stream(), both);
          part.clear();
          part.wait();
          meet();
          for (int i = 0; i < replays && rank == 0; ++i) graph.launch(part.stream());
          part.wait();
          meet();
        }
        part.read(); // this rank's memory may go while others are at work
        const auto& local = part.found;
        const std::lock_guard lock{mutex};
        put_shard(r.out, local.out, split.q, rank);
        put_shard(r.lse, local.lse, split.q, rank);
        put_shard(r.dq, local.dq, split.q, rank);
        put_shard(r.dk, local.dk, split.kv, rank);
        put_shard(r.dv, local.dv, split.kv, rank);
        dsink[static_cast<std::size_t>(rank)] = local.dsink;
      },
      how);
  for (const auto& share : dsink) {
    for (index_t h = 0; h < r.dsink.extent(0); ++h) r.dsink(h) += share(h);
  }
  if (sent) *sent = moved;
  return r;
}

enum class method { ring, all_gather, automatic, ulysses, hybrid };

/// By one of the drivers. A hybrid has `inside` ranks to a shard of the layouts, which are then
/// those of its outer ring.
template <class O, class G, class T, class Mask>
whole_results<O, G> run_on_device(method how, const whole_inputs<T>& in, const any_layout& q,
                                  const any_layout& kv, const Mask& mask, int inside = 2,
                                  int replays = 0, bool in_place = true, const options& opt = {}) {
  const cp::shape s = in.sizes.shape;
  const score::none plain{};
  const cp::shards split{q, kv};
  switch (how) {
  case method::ring:
    return device_split_results<O, G>(
        in, split,
        [&](comm::local& c) {
          cp::ring driver{c, s, split, mask, plain, opt};
          driver.smallest_cut(1); // of any length
          return driver;
        },
        replays, nullptr, in_place);
  case method::all_gather:
    return device_split_results<O, G>(
        in, split, [&](comm::local& c) { return cp::all_gather{c, s, split, mask, plain, opt}; },
        replays, nullptr, in_place);
  case method::automatic:
    return device_split_results<O, G>(
        in, split, [&](comm::local& c) { return cp::automatic{c, s, split, mask, plain, opt}; },
        replays, nullptr, in_place);
  case method::ulysses:
    return device_split_results<O, G>(
        in, split, [&](comm::local& c) { return cp::ulysses{c, s, split, mask, plain, opt}; },
        replays, nullptr, in_place);
  default:
    break;
  }
  const cp::shards mesh{shard::subdivided{q, inside}, shard::subdivided{kv, inside}};
  return device_split_results<O, G>(
      in, mesh, [&](comm::local& c) { return cp::hybrid{c, s, mesh, mask, plain, opt}; }, replays,
      nullptr, in_place);
}

inline const char* name_of(method how) {
  constexpr const char* names[] = {"ring", "all-gather", "automatic", "ulysses", "hybrid"};
  return names[static_cast<int>(how)];
}

/// Whether split results are as good as those of one device, both measured against the reference.
/// @param floor what the error of any result may be at least, relative.
template <class A, class B, class C>
void check_as_good(const A& split, const B& single, const C& exact, double floor) {
  const auto check = [&](const char* name, const auto& a, const auto& b, const auto& want) {
    CAPTURE(std::string{name});
    if (want.span().size() == 0) return;
    CHECK(relative_error(a, want) <= 1.1 * relative_error(b, want) + floor);
  };
  check("out", split.out, single.out, exact.out);
  check("dq", split.dq, single.dq, exact.dq);
  check("dk", split.dk, single.dk, exact.dk);
  check("dv", split.dv, single.dv, exact.dv);
  CHECK(max_error(split.lse, exact.lse) < 2e-3);
  CHECK(max_error(split.dsink, exact.dsink) <=
        1.5 * max_error(single.dsink, exact.dsink) + 100 * floor);
}

/// Every driver x layout x ranks x mask, grouped heads, odd lengths.
template <class T>
void check_drivers(std::uint64_t seed, double floor) {
  CAPTURE(seed);
  std::mt19937 random(static_cast<unsigned>(seed));
  const auto roll = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  const int masks[] = {any_mask::causal,   any_mask::window,    any_mask::blocks,
                       any_mask::per_head, any_mask::scattered, any_mask::nothing_late};
  for (const int kind : masks) {
    for (int ranks : {1, 2, 4, 7, 8}) {
      const int q_heads = ranks == 7 ? 7 : 8;
      const int kv_heads = ranks == 7 ? 7 : ranks == 8 ? 2 : 4;
      const int tokens = 200 + roll(200);
      const case_sizes s{
          {1 + roll(2), q_heads, kv_heads, 64 - 8 * roll(2), 64 - 8 * roll(3)}, tokens, tokens};
      const whole_inputs<T> in{random(), s, roll(2) == 0};
      const any_mask mask{kind};
      const auto exact = reference_results_of(in, mask);
      const auto single = device_results<T, T>(in, mask);
      for (const method how :
           {method::ring, method::all_gather, method::automatic, method::ulysses, method::hybrid}) {
        if (how == method::hybrid && ranks % 2 != 0) continue;
        const char* layouts[] = {"contiguous", "zigzag", "striped"};
        for (const char* layout : layouts) {
          if (layout != layouts[(kind + ranks) % 3] && ranks != 4) continue;
          CAPTURE(kind);
          CAPTURE(ranks);
          CAPTURE(tokens);
          CAPTURE(std::string{layout});
          CAPTURE(std::string{name_of(how)});
          const any_layout split{layout, tokens, how == method::hybrid ? ranks / 2 : ranks};
          for (const bool in_place : {true, false}) {
            if (!in_place && how != method::ring && how != method::hybrid) continue;
            CAPTURE(in_place);
            check_as_good(run_on_device<T, T>(how, in, split, split, mask, 2, 0, in_place), single,
                          exact, floor);
          }
        }
      }
    }
  }
}

template <class T>
void check_lengths(double floor) {
  const int lengths[][2] = {{300, 170}, {1, 300}, {3, 3}, {0, 20}, {20, 0}};
  std::uint64_t seed = 40;
  for (const auto& [q_len, kv_len] : lengths) {
    CAPTURE(q_len);
    CAPTURE(kv_len);
    const case_sizes s{{2, 4, 4, 64, 64}, q_len, kv_len};
    const any_mask mask{any_mask::window};
    const whole_inputs<T> in{++seed, s, true};
    const auto exact = reference_results_of(in, mask);
    const auto single = device_results<T, T>(in, mask);
    for (const method how : {method::ring, method::all_gather, method::ulysses, method::hybrid}) {
      CAPTURE(std::string{name_of(how)});
      const int ranks = how == method::hybrid ? 2 : 4;
      for (const bool in_place : {true, false}) {
        CAPTURE(in_place);
        check_as_good(run_on_device<T, T>(how, in, any_layout{"zigzag", q_len, ranks},
                                          any_layout{"striped", kv_len, ranks}, mask, 2, 0,
                                          in_place),
                      single, exact, floor);
      }
    }
  }
}

} // namespace maskring::testing
