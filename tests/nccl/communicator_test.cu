// SPDX-License-Identifier: Apache-2.0
// The NCCL communicator: with one rank in this process, and with more in processes of their own
// where there are GPUs for them or an NCCL that lets ranks share one.
#include "ranks.cuh"

#include <maskring/comm/split.hpp>

#include <cstring>
#include <optional>

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
  CHECK_FALSE(static_cast<bool>(c.split(-1, 0)));
  nccl borrowed{c.handle(), comm::ownership::borrowed, {}, false};
  check_messages(borrowed, s.get());
}

TEST_CASE("rank: long messages between registered memory on both sides") {
  constexpr int count = 1 << 22;
  nccl c = comm::from_environment({.time_limit = 30s, .register_buffers = true});
  const comm::detail::stream s = comm::detail::make_stream();
  const int n = c.size(), previous = (c.rank() + n - 1) % n;
  numbers<int> mine{c, s.get(), std::vector<int>(count, c.rank())},
      other{c, s.get(), std::vector<int>(count, -1)};
  for (int repeat = 0; repeat < 2; ++repeat) {
    const comm::transfer group[] = {comm::send((c.rank() + 1) % n, mine.data(), count),
                                    comm::receive(previous, other.data(), count)};
    c.start(s.get(), group).wait(s.get());
    c.synchronize(s.get());
    CHECK(other.get() == std::vector<int>(count, previous));
  }
}

TEST_CASE("rank: long messages from memory of the caller's own") {
  constexpr int count = 1 << 22;
  nccl c = comm::from_environment({.time_limit = 30s});
  const comm::detail::stream s = comm::detail::make_stream();
  const int n = c.size(), previous = (c.rank() + n - 1) % n;
  const comm::detail::device_memory own{count * sizeof(int)};
  cudaMemset(own.data(), 1 + c.rank(), count * sizeof(int));
  cudaDeviceSynchronize();
  numbers<int> other{c, s.get(), std::vector<int>(count, -1)};
  const comm::transfer group[] = {
      comm::send((c.rank() + 1) % n, static_cast<int*>(own.data()), count),
      comm::receive(previous, other.data(), count)};
  c.start(s.get(), group).wait(s.get());
  c.synchronize(s.get());
  CHECK(other.get() == std::vector<int>(count, 0x01010101 * (1 + previous)));
}

TEST_CASE("processes: messages and collectives of several ranks" *
          doctest::skip(started_as_rank())) {
  check_as_processes("rank: messages*", 60s);
  check_as_processes("rank: long*registered*", 60s);
  check_as_processes("rank: long*own*", 60s);
}

TEST_CASE("processes: a rank that never comes is missed within the time limit" *
          doctest::skip(started_as_rank())) {
  const comm::meeting_point where{"127.0.0.1",
                                  29000 + static_cast<int>(std::random_device{}() % 900)};
  ncclUniqueId id{};
  CHECK_THROWS_AS(
      comm::broadcast_from_root(where, 0, 2, std::as_writable_bytes(std::span{&id, 1}), 300ms),
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
