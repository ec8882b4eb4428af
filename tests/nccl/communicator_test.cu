// SPDX-License-Identifier: Apache-2.0
// The NCCL communicator and the drivers on it: with one rank in this process, and with more in
// processes of their own where there are GPUs for them or an NCCL that lets ranks share one.
#include "../cp/device_problems.cuh"
#include "processes.hpp"

#include <maskring/comm/nccl.cuh>

using namespace maskring;
using namespace maskring::testing;
using namespace std::chrono_literals;
using comm::nccl;

static_assert(comm::sharing<nccl> && comm::buffer_source<nccl> && comm::splitting<nccl>);
static_assert(comm::point_to_point<nccl, cudaStream_t>);
static_assert(comm::all_gathering<nccl, cudaStream_t>);
static_assert(comm::all_to_all_exchanging<nccl, cudaStream_t>);
static_assert(comm::reduce_scattering<nccl, cudaStream_t>);

namespace {

/// How many ranks can be had, and why not more.
int possible_ranks(std::map<std::string, std::string>& variables) {
  int devices = 0, version = 0;
  cudaGetDeviceCount(&devices);
  ncclGetVersion(&version);
  variables["MASKRING_TEST_JOB"] = "1";
  variables["NCCL_NVLS_ENABLE"] = "0";
  if (devices > 1) return std::min(devices, 4);
  if (version >= NCCL_VERSION(2, 30, 3)) {
    variables["NCCL_MULTI_RANK_GPU_ENABLE"] = "1";
    return 2;
  }
  MESSAGE("skipped with more than one rank: one GPU, and NCCL ", version,
          " gives it to one rank only (2.30.3 and later: to several)");
  return 1;
}

/// Numbers in registered memory.
template <class T>
class numbers {
public:
  numbers(nccl& c, cudaStream_t stream, const std::vector<T>& values)
      : stream_{stream}, count_{values.size()}, memory_{c.allocate(count_ * sizeof(T))} {
    cudaMemcpyAsync(data(), values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice, stream_);
    cudaStreamSynchronize(stream_);
  }
  T* data() const { return static_cast<T*>(memory_.data()); }
  std::vector<T> get() const {
    std::vector<T> out(count_);
    cudaMemcpyAsync(out.data(), data(), count_ * sizeof(T), cudaMemcpyDeviceToHost, stream_);
    cudaStreamSynchronize(stream_);
    return out;
  }

private:
  cudaStream_t stream_;
  std::size_t count_;
  nccl::buffer memory_;
};

void check_messages(nccl& c, cudaStream_t s) {
  const int n = c.size(), r = c.rank(), next = (r + 1) % n, previous = (r + n - 1) % n;
  numbers<int> mine{c, s, std::vector<int>(5000, r)}, other{c, s, std::vector<int>(5000, -1)};
  for (int repeat = 0; repeat < 3; ++repeat) {
    const comm::transfer group[] = {comm::send(next, mine.data(), 5000),
                                    comm::receive(previous, other.data(), 5000)};
    c.start(s, group).wait(s);
    CHECK(other.get() == std::vector<int>(5000, previous));
  }
  std::vector<int> outgoing, expected(static_cast<std::size_t>(n));
  std::vector<float> parts;
  for (int i = 0; i < n; ++i) {
    outgoing.push_back(100 * r + i);
    parts.push_back(static_cast<float>(r + 10 * i));
    expected[static_cast<std::size_t>(i)] = 100 * i + r;
  }
  numbers<int> from{c, s, outgoing}, to{c, s, std::vector<int>(static_cast<std::size_t>(n), -1)};
  c.all_to_all(s, from.data(), to.data(), sizeof(int));
  CHECK(to.get() == expected);
  c.all_gather(s, mine.data(), to.data(), sizeof(int));
  for (int i = 0; i < n; ++i) CHECK(to.get()[static_cast<std::size_t>(i)] == i);
  numbers<float> shares{c, s, parts}, sum{c, s, {0}};
  c.reduce_scatter(s, shares.data(), sum.data(), 1);
  CHECK(sum.get()[0] == static_cast<float>(n * (n - 1) / 2 + 10 * n * r));
  const int token = 7 * r;
  const auto shared = c.share(std::as_bytes(std::span{&token, 1}));
  for (int i = 0; i < n; ++i) {
    int theirs = -1;
    std::memcpy(&theirs, shared.data() + sizeof(int) * static_cast<std::size_t>(i), sizeof(int));
    CHECK(theirs == 7 * i);
  }
  c.synchronize(s);
}

/// This rank's shard by a driver against one device's results.
template <class Make, class Split>
void check_driver(nccl& c, const whole_inputs<bfloat16>& in, const whole_results<double>& exact,
                  const Split& split, Make make) {
  const int rank = c.rank();
  case_sizes mine = in.sizes;
  mine.q_len = split.size(rank);
  mine.kv_len = split.size(rank);
  auto driver = make(c);
  {
    device_part<bfloat16, bfloat16, bfloat16> part{
        shard_of(in.q, split, rank),    shard_of(in.k, split, rank),    shard_of(in.v, split, rank),
        shard_of(in.dout, split, rank), shard_of(in.dlse, split, rank), in.sink, mine};
    const auto exec = part.exec();
    for (int repeat = 0; repeat < 2; ++repeat) {
      part.run([&](const auto& given, const auto& out) { driver.forward(exec, given, out); },
               [&](const auto& kept, const auto& up, const auto& grad) {
                 driver.backward(exec, kept, up, grad);
               });
    }
    c.synchronize(part.stream());
    const auto& got = part.read();
    CHECK(relative_error(got.out, shard_of(exact.out, split, rank)) < 1e-2);
    CHECK(relative_error(got.dq, shard_of(exact.dq, split, rank)) < 2e-2);
    CHECK(relative_error(got.dk, shard_of(exact.dk, split, rank)) < 2e-2);
    CHECK(relative_error(got.dv, shard_of(exact.dv, split, rank)) < 2e-2);
  }
}

} // namespace

TEST_CASE("rank: messages and collectives") {
  nccl c = comm::from_environment({.time_limit = 30s});
  const comm::detail::stream s = comm::detail::make_stream();
  check_messages(c, s.get());
  nccl all = c.split(0, -c.rank());
  CHECK(all.rank() == c.size() - 1 - c.rank());
  check_messages(all, s.get());
  nccl alone = c.split(c.rank(), 0);
  CHECK(alone.size() == 1);
  check_messages(alone, s.get());
  CHECK_FALSE(c.split(-1, 0));
  nccl borrowed{c.handle(), comm::ownership::borrowed, {}, false};
  check_messages(borrowed, s.get());
}

TEST_CASE("rank: the drivers") {
  nccl c = comm::from_environment({.time_limit = 60s});
  const int n = c.size();
  const case_sizes s{{1, 4, 4, 64, 64}, 300, 300};
  const whole_inputs<bfloat16> in{5, s, true};
  const any_mask mask{any_mask::causal};
  const auto exact = reference_results_of(in, mask);
  const any_layout zigzag{"zigzag", 300, n};
  check_driver(c, in, exact, zigzag, [&](nccl& x) { return cp::ring{x, s.shape, zigzag, mask}; });
  check_driver(c, in, exact, zigzag,
               [&](nccl& x) { return cp::all_gather{x, s.shape, zigzag, mask}; });
  check_driver(c, in, exact, zigzag, [&](nccl& x) { return cp::ulysses{x, s.shape, zigzag, mask}; });
  const int inside = n % 2 == 0 ? 2 : 1;
  const shard::subdivided mesh{any_layout{"zigzag", 300, n / inside}, inside};
  check_driver(c, in, exact, mesh, [&](nccl& x) { return cp::hybrid{x, s.shape, mesh, mask}; });
}

TEST_CASE("rank: ranks that disagree find out at construction") {
  nccl c = comm::from_environment({.time_limit = 30s});
  if (c.size() == 1) return;
  const cp::shape sizes{1, 4 + c.rank(), 1, 64, 64};
  std::string text;
  try {
    cp::ring{c, sizes, any_layout{"zigzag", 300, c.size()}, any_mask{any_mask::causal}};
  } catch (const std::invalid_argument& error) {
    text = error.what();
  }
  CHECK(text.find("q_heads is 5 on rank 1 and 4 on rank 0") != std::string::npos);
}

TEST_CASE("victim: a rank is killed in the middle of a ring step" * doctest::skip(!started_as_rank())) {
  constexpr auto limit = 3s;
  constexpr int understood = 42;
  nccl c = comm::from_environment({.time_limit = limit});
  const comm::detail::stream s = comm::detail::make_stream();
  const int n = c.size();
  numbers<int> mine{c, s.get(), std::vector<int>(1 << 20, 0)},
      other{c, s.get(), std::vector<int>(1 << 20, 0)};
  const auto step = [&] {
    const comm::transfer group[] = {comm::send((c.rank() + 1) % n, mine.data(), 1 << 20),
                                    comm::receive((c.rank() + n - 1) % n, other.data(), 1 << 20)};
    c.start(s.get(), group).wait(s.get());
  };
  const auto begin = std::chrono::steady_clock::now();
  try {
    for (int i = 0; i < 5; ++i) step();
    c.synchronize(s.get());
    if (c.rank() == n - 1) raise(SIGKILL);
    step();
    cudaStreamSynchronize(s.get()); // returns although nobody will ever send
    c.require_alive();
  } catch (const comm::timed_out& error) {
    const bool named = error.operation().find("receive from rank") != std::string::npos &&
                       error.limit() == limit;
    std::printf("rank %d: %s\n", c.rank(), error.what());
    std::fflush(stdout);
    const auto took = std::chrono::steady_clock::now() - begin;
    std::_Exit(named && took < limit + 5s ? understood : 1);
  } catch (const comm::nccl_error& error) {
    std::printf("rank %d: %s\n", c.rank(), error.what());
    std::fflush(stdout);
    std::_Exit(understood);
  }
  std::_Exit(2); // nobody told this rank
}

TEST_CASE("processes: the whole suite with several ranks" * doctest::skip(started_as_rank())) {
  std::map<std::string, std::string> variables;
  const int ranks = possible_ranks(variables);
  if (ranks == 1) return;
  for (const ended_process& p : run_job(ranks, "rank:*", variables, 120s)) CHECK(p.exited_with(0));
}

TEST_CASE("processes: the others end within the time limit when a rank is killed" *
          doctest::skip(started_as_rank())) {
  std::map<std::string, std::string> variables;
  const int ranks = possible_ranks(variables);
  if (ranks == 1) return;
  const auto ended = run_job(ranks, "victim:*", variables, 60s);
  REQUIRE(ended.size() == static_cast<std::size_t>(ranks));
  for (int rank = 0; rank + 1 < ranks; ++rank) {
    CAPTURE(rank);
    CHECK(ended[static_cast<std::size_t>(rank)].exited_with(42));
  }
  CHECK(WIFSIGNALED(ended.back().status));
}

TEST_CASE("processes: a rank that never comes is missed within the time limit" *
          doctest::skip(started_as_rank())) {
  const comm::meeting_point where{"127.0.0.1", 29000 + static_cast<int>(std::random_device{}() % 900)};
  ncclUniqueId id{};
  CHECK_THROWS_AS(comm::broadcast_from_root(where, 0, 2, std::as_writable_bytes(std::span{&id, 1}),
                                            300ms),
                  comm::rendezvous_failed);
  REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
  CHECK_THROWS_AS((nccl{id, 0, 2, {.time_limit = 1s}}), comm::timed_out);
}

TEST_CASE("processes: one process with a rank on each of its devices" *
          doctest::skip(started_as_rank())) {
  int devices = 0;
  cudaGetDeviceCount(&devices);
  std::vector<int> ids;
  for (int i = 0; i < std::min(devices, 4); ++i) ids.push_back(i);
  std::vector<nccl> ranks = nccl::all(ids, {.time_limit = 30s});
  std::vector<std::thread> running;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    running.emplace_back([&, i] {
      cudaSetDevice(ids[i]);
      const comm::detail::stream s = comm::detail::make_stream();
      check_messages(ranks[i], s.get());
    });
  }
  for (std::thread& t : running) t.join();
  ncclComm_t made = nullptr; // made by the caller, NCCL's usual way
  const int first = 0;
  REQUIRE(ncclCommInitAll(&made, 1, &first) == ncclSuccess);
  nccl taken{made, comm::ownership::taken};
  const comm::detail::stream s = comm::detail::make_stream();
  check_messages(taken, s.get());
}
