// SPDX-License-Identifier: Apache-2.0
// Times context parallelism with all ranks on one GPU beside one attention call over everything: what
// splitting costs when communication is a copy inside the device.
// usage: bench_cuda_context_parallel [--json FILE] [--seq N] [--ranks N] [--deterministic 0|1]

#include "support/attention.cuh"

#include <maskring/comm/local.cuh>
#include <maskring/cp/all_gather.hpp>
#include <maskring/cp/cuda.cuh>
#include <maskring/cp/hybrid.hpp>
#include <maskring/cp/ring.hpp>
#include <maskring/cp/ulysses.hpp>
#include <maskring/mask/window.hpp>

#include <cstdio>
#include <exception>
#include <mutex>

namespace {

namespace mr = maskring;
using element = __nv_bfloat16;
constexpr int dim = 128, heads = 16;

struct times {
  double forward = 0, backward = 0;
};

double used_mib() {
  std::size_t free = 0, total = 0;
  bench::require_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<double>(total - free) / (1 << 20);
}

/// The tensors of one rank's tokens, or of all.
struct tensors {
  explicit tensors(mr::index_t tokens, unsigned seed)
      : shape{1, heads, tokens, dim}, data(static_cast<std::size_t>(8 * heads * tokens * dim)),
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
             .count() / runs;
}

template <class Mask>
times single(const Mask& mask, mr::index_t seq, int runs, const mr::cuda::policy& policy) {
  const tensors t{seq, 1};
  cudaStream_t stream = nullptr;
  bench::require_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  times out;
  {
    mr::cuda::workspace scratch;
    const auto exec = mr::cuda::on(stream, scratch, mr::cuda::head_dims<dim>).with(policy);
    const auto map = mr::cuda::make_block_map(exec, mask, {1, heads, seq, seq});
    const auto forward = [&] { mr::forward(exec, t.in(), t.out(), mask, map); };
    const auto backward = [&] { mr::backward(exec, t.saved(), t.up(), t.grad(), mask, map); };
    wall_ms(forward, 1);
    out.forward = wall_ms(forward, runs);
    wall_ms(backward, 1);
    out.backward = wall_ms(backward, runs);
  }
  cudaStreamDestroy(stream);
  return out;
}

/// `make(comm)` gives a rank's driver, `tokens(rank)` the size of its shard.
template <class Make, class Tokens>
times split(int ranks, int runs, const mr::cuda::policy& policy, Make make, Tokens tokens,
            double& extra_mib) {
  times out;
  mr::comm::run_local(ranks, [&](mr::comm::local& c) {
    const tensors t{tokens(c.rank()), static_cast<unsigned>(c.rank() + 2)};
    const mr::comm::detail::stream stream = mr::comm::detail::make_stream();
    mr::cuda::workspace scratch;
    const auto exec = mr::cuda::on(stream.get(), scratch, mr::cuda::head_dims<dim>).with(policy);
    const auto meet = [&] { c.share(std::as_bytes(std::span{&ranks, 1})); };
    meet();
    const double before = c.rank() == 0 ? used_mib() : 0;
    meet();
    auto driver = make(c);
    const auto forward = [&] { driver.forward(exec, t.in(), t.out()); };
    const auto backward = [&] { driver.backward(exec, t.saved(), t.up(), t.grad()); };
    const auto timed = [&](const auto& work) {
      meet();
      const double ms = wall_ms(work, runs);
      meet();
      return ms;
    };
    timed(forward);
    if (c.rank() == 0) extra_mib = (used_mib() - before) / ranks;
    const double f = timed(forward);
    timed(backward);
    const double b = timed(backward);
    if (c.rank() == 0) out = {f, b};
    bench::require_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    meet();
  });
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
  const double shard_mib = static_cast<double>(heads * zigzag.size(0) * dim) * sizeof(element) / (1 << 20);

  const auto compare = [&](const char* name, const auto& mask, int runs) {
    const times alone = single(mask, seq, runs, policy);
    std::printf("%s, %ld tokens, one call: forward %.2f ms, backward %.2f ms\n", name,
                static_cast<long>(seq), alone.forward, alone.backward);
    const auto add = [&](const char* method, const times& t, double extra_mib) {
      for (const bool back : {false, true}) {
        report.add(bench::record{}
                       .text("what", back ? "backward" : "forward")
                       .text("method", method)
                       .text("mask", name)
                       .integer("ranks", ranks)
                       .integer("seq", seq)
                       .number("ms", back ? t.backward : t.forward)
                       .number("one_call_ms", back ? alone.backward : alone.forward)
                       .number("ratio", back ? t.backward / alone.backward
                                             : t.forward / alone.forward)
                       .number("extra_mib", extra_mib)
                       .number("extra_kv_shards", extra_mib / (2 * shard_mib)));
      }
    };
    const auto tokens = [&](int rank) { return zigzag.size(rank); };
    double extra = 0;
    times t = split(ranks, runs, policy,
                    [&](mr::comm::local& c) { return mr::cp::ring{c, sizes, zigzag, mask}; },
                    tokens, extra);
    add("ring", t, extra);
    t = split(ranks, runs, policy,
              [&](mr::comm::local& c) { return mr::cp::all_gather{c, sizes, zigzag, mask}; },
              tokens, extra);
    add("all-gather", t, extra);
    if (heads % ranks == 0) {
      t = split(ranks, runs, policy,
                [&](mr::comm::local& c) { return mr::cp::ulysses{c, sizes, zigzag, mask}; }, tokens,
                extra);
      add("ulysses", t, extra);
    }
    if (ranks % 2 == 0) {
      const mr::shard::subdivided mesh{mr::shard::zigzag{seq, ranks / 2}, 2};
      t = split(ranks, runs, policy,
                [&](mr::comm::local& c) { return mr::cp::hybrid{c, sizes, mesh, mask}; },
                [&](int rank) { return mesh.size(rank); }, extra);
      add("hybrid", t, extra);
    }
  };
  compare("causal", mr::mask::causal{}, 3);
  compare("sliding window 4096", mr::mask::sliding_window{4096}, 10);
} catch (const std::exception& failure) {
  std::fprintf(stderr, "%s\n", failure.what());
  return 1;
}
