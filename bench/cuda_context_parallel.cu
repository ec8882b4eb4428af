// SPDX-License-Identifier: Apache-2.0
// Times context parallelism with all ranks on one GPU beside one attention call over everything:
// what splitting costs where ranks read one another's keys in place, or by a copy inside the
// device.
//
// usage: bench_cuda_context_parallel [--json FILE] [--seq N] [--ranks N] [--deterministic 0|1]

#include "support/attention.cuh"

#include <maskring/comm/local.cuh>
#include <maskring/cp/all_gather.hpp>
#include <maskring/cp/automatic.hpp>
#include <maskring/cp/cuda.cuh>
#include <maskring/cp/hybrid.hpp>
#include <maskring/cp/ring.hpp>
#include <maskring/cp/ulysses.hpp>
#include <maskring/mask/window.hpp>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <vector>

namespace {

namespace mr = maskring;
using element = __nv_bfloat16;
constexpr int dim = 128, heads = 16;

struct pass_numbers {
  double ms = 0, one_call_ms = 0, ratio = 0; ///< medians of the rounds
  double extra_mib = 0;                      ///< memory that a rank's driver keeps
};
struct numbers {
  pass_numbers forward, backward;
};

/// As a caller's stream: copies between ranks, which others wait for, go before its work.
class plain_stream {
public:
  plain_stream() {
    bench::require_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                        "cudaStreamCreateWithFlags");
  }
  plain_stream(const plain_stream&) = delete;
  ~plain_stream() { cudaStreamDestroy(stream_); }
  cudaStream_t get() const { return stream_; }

private:
  cudaStream_t stream_ = nullptr;
};

double used_mib() {
  std::size_t free = 0, total = 0;
  bench::require_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<double>(total - free) / (1 << 20);
}

/// The tensors of one rank's tokens, or of all.
struct tensors {
  explicit tensors(mr::index_t tokens, unsigned seed)
      : shape{1, heads, tokens, dim},
        data(static_cast<std::size_t>(8 * heads * tokens * dim)),
        rows(static_cast<std::size_t>(heads * tokens)) {
    bench::fill_normal<<<1024, 256>>>(data.data(), data.size(), seed);
    bench::require_cuda(cudaDeviceSynchronize(), "fill_normal");
  }
  mr::view<element, 4> at(int i) const {
    mr::view<element, 4> out{nullptr, shape};
    out.data = data.data() + i * out.size();
    return out;
  }
  mr::view<const element, 4> read(int i) const { return at(i); }
  mr::view<float, 3> lse() const { return {rows.data(), {1, heads, shape[2]}}; }
  auto in() const { return mr::inputs{read(0), read(1), read(2)}; }
  auto out() const { return mr::results{at(3), lse()}; }
  auto saved() const { return mr::saved{read(0), read(1), read(2), read(3), lse()}; }
  auto up() const { return mr::upstream{read(4)}; }
  auto grad() const { return mr::gradients{at(5), at(6), at(7)}; }

  mr::index_t shape[4];
  bench::device_array<element> data;
  bench::device_array<float> rows;
};

template <class Work>
double wall_ms(Work work, int runs) {
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < runs; ++i) work();
  bench::require_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
             .count() /
         runs;
}

/// One attention call over everything.
template <class Mask>
class single {
public:
  single(const Mask& mask, mr::index_t seq, const mr::cuda::policy& policy)
      : mask_{mask},
        tensors_{seq, 1},
        policy_{policy},
        map_{mr::cuda::make_block_map(exec(), mask, {1, heads, seq, seq})} {
    forward();
    backward();
  }
  void forward() { mr::forward(exec(), tensors_.in(), tensors_.out(), mask_, map_); }
  void backward() {
    mr::backward(exec(), tensors_.saved(), tensors_.up(), tensors_.grad(), mask_, map_);
  }

private:
  auto exec() {
    return mr::cuda::on(stream_.get(), scratch_, mr::cuda::unpacked(mr::cuda::head_dims<dim>))
        .with(policy_);
  }

  Mask mask_;
  tensors tensors_;
  plain_stream stream_;
  mr::cuda::workspace scratch_;
  mr::cuda::policy policy_;
  mr::cuda::block_map map_;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// `make(comm)` gives a rank's driver, `tokens(rank)` the size of its shard. The ranks and `alone`
/// take turns, since clocks drift.
template <class Mask, class Make, class Tokens>
numbers split(int ranks, int runs, const mr::cuda::policy& policy, Make make, Tokens tokens,
              bool in_place, single<Mask>& alone) {
  constexpr int rounds = 5;
  numbers out;
  const auto work = [&](mr::comm::local& c) {
    const ::tensors t{tokens(c.rank()), static_cast<unsigned>(c.rank() + 2)};
    const plain_stream stream;
    mr::cuda::workspace scratch;
    const auto exec =
        mr::cuda::on(stream.get(), scratch, mr::cuda::unpacked(mr::cuda::head_dims<dim>))
            .with(policy);
    const auto meet = [&] { c.share(std::as_bytes(std::span{&ranks, 1})); };
    meet();
    const double before = c.rank() == 0 ? used_mib() : 0;
    meet();
    auto driver = make(c);
    const auto measure = [&](const auto& pass, const auto& whole) {
      const auto timed = [&](int count) {
        meet();
        const double ms = wall_ms(pass, count);
        meet();
        return ms;
      };
      timed(1);
      const double extra = c.rank() == 0 ? (used_mib() - before) / ranks : 0;
      std::vector<double> ms, one_call, ratio;
      for (int i = 0; i < rounds; ++i) {
        one_call.push_back(c.rank() == 0 ? wall_ms(whole, runs) : 1); // while the others wait
        ms.push_back(timed(runs));
        ratio.push_back(ms.back() / one_call.back());
      }
      return pass_numbers{median(ms), median(one_call), median(ratio), extra};
    };
    const pass_numbers f =
        measure([&] { driver.forward(exec, t.in(), t.out()); }, [&] { alone.forward(); });
    const pass_numbers b = measure([&] { driver.backward(exec, t.saved(), t.up(), t.grad()); },
                                   [&] { alone.backward(); });
    if (c.rank() == 0) out = {f, b};
    meet();
  };
  mr::comm::run_local(ranks, work, {.devices = {}, .turns = false, .in_place = in_place});
  return out;
}

} // namespace

int main(int count, char** arguments) try {
  const mr::index_t seq = std::stol(bench::argument(count, arguments, "seq", "131072"));
  const int ranks = std::stoi(bench::argument(count, arguments, "ranks", "8"));
  const mr::cuda::policy policy = bench::policy_argument(count, arguments);
  bench::report report{bench::device_name(), bench::argument(count, arguments, "json", "")};
  const mr::cp::shape sizes{1, heads, heads, dim, dim};
  const mr::shard::zigzag zigzag{seq, ranks};
  const double shard_mib =
      static_cast<double>(heads * zigzag.size(0) * dim) * sizeof(element) / (1 << 20);

  const auto compare = [&](const char* name, const auto& mask, int runs) {
    single alone{mask, seq, policy};
    const auto add = [&](const char* method, auto make, auto tokens, bool in_place = true) {
      const numbers n = split(ranks, runs, policy, make, tokens, in_place, alone);
      const auto line = [&](const char* what, const pass_numbers& is) {
        report.add(bench::record{}
                       .text("what", what)
                       .text("method", method)
                       .text("mask", name)
                       .integer("ranks", ranks)
                       .integer("seq", seq)
                       .number("ms", is.ms)
                       .number("one_call_ms", is.one_call_ms)
                       .number("ratio", is.ratio)
                       .number("extra_mib", is.extra_mib)
                       .number("extra_kv_shards", is.extra_mib / (2 * shard_mib)));
      };
      line("forward", n.forward);
      line("backward", n.backward);
    };
    const auto tokens = [&](int rank) { return zigzag.size(rank); };
    const auto automatic = [&](mr::comm::local& c) {
      return mr::cp::automatic{c, sizes, zigzag, mask};
    };
    add("automatic", automatic, tokens);
    const auto ring = [&](mr::comm::local& c) { return mr::cp::ring{c, sizes, zigzag, mask}; };
    add("ring", ring, tokens);
    add("ring, keys sent", ring, tokens, false);
    const auto gathering = [&](mr::comm::local& c) {
      return mr::cp::all_gather{c, sizes, zigzag, mask};
    };
    add("all-gather", gathering, tokens);
    const auto over_heads = [&](mr::comm::local& c) {
      return mr::cp::ulysses{c, sizes, zigzag, mask};
    };
    if (heads % ranks == 0) add("ulysses", over_heads, tokens);
    if (ranks % 2 != 0) return;
    const mr::shard::subdivided mesh{mr::shard::zigzag{seq, ranks / 2}, 2};
    const auto both = [&](mr::comm::local& c) { return mr::cp::hybrid{c, sizes, mesh, mask}; };
    add("hybrid", both, [&](int rank) { return mesh.size(rank); });
  };
  compare("causal", mr::mask::causal{}, 1);
  compare("sliding window 4096", mr::mask::sliding_window{4096}, 6);
} catch (const std::exception& failure) {
  std::fprintf(stderr, "%s\n", failure.what());
  return 1;
}
