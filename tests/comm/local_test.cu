// SPDX-License-Identifier: Apache-2.0
#include <maskring/comm/capture.cuh>
#include <maskring/comm/local.cuh>

#include <doctest/doctest.h>

#include <chrono>

namespace {

using namespace maskring;
using comm::local;
using comm::run_local;

static_assert(comm::sharing<local> && comm::buffer_source<local>);
static_assert(comm::point_to_point<local, cudaStream_t>);
static_assert(comm::all_gathering<local, cudaStream_t>);
static_assert(comm::all_to_all_exchanging<local, cudaStream_t>);
static_assert(comm::reduce_scattering<local, cudaStream_t>);
static_assert(!comm::point_to_point<local, comm::host_queue>);

template <class Work>
std::string error_of(Work work) {
  try {
    work();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// Numbers in device memory.
template <class T>
class numbers {
public:
  numbers(local& c, cudaStream_t stream, std::vector<T> values)
      : stream_{stream}, count_{values.size()}, memory_{c.allocate(count_ * sizeof(T))} {
    set(values);
  }
  T* data() const { return static_cast<T*>(memory_.data()); }
  void set(const std::vector<T>& values) {
    comm::detail::require_cuda(
        cudaMemcpyAsync(data(), values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice, stream_),
        "cudaMemcpyAsync");
  }
  std::vector<T> get() const {
    std::vector<T> out(count_);
    cudaMemcpyAsync(out.data(), data(), count_ * sizeof(T), cudaMemcpyDeviceToHost, stream_);
    comm::detail::require_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    return out;
  }

private:
  cudaStream_t stream_;
  std::size_t count_;
  local::buffer memory_;
};

/// Keeps its stream busy, then adds.
__global__ void slow_add(int* data, int count, int value) {
  const long long begin = clock64();
  while (clock64() - begin < 200'000) {
  }
  for (int i = threadIdx.x; i < count; i += blockDim.x) data[i] += value;
}

} // namespace

TEST_CASE("local: messages are ordered by events, not by the host") {
  for (int ranks : {1, 2, 5, 8}) {
    CAPTURE(ranks);
    constexpr int count = 10000;
    const auto sent = run_local(ranks, [&](local& c) {
      const comm::detail::stream s = comm::detail::make_stream();
      numbers<int> mine{c, s.get(), std::vector<int>(count, c.rank())};
      numbers<int> other{c, s.get(), std::vector<int>(count, -1)};
      int *now = mine.data(), *next = other.data();
      for (int step = 0; step < ranks; ++step) {
        slow_add<<<1, 256, 0, s.get()>>>(now, count, 100); // not yet run when the group starts
        const comm::transfer group[] = {comm::send((c.rank() + 1) % ranks, now, count),
                                        comm::receive((c.rank() + ranks - 1) % ranks, next, count)};
        auto moving = c.start(s.get(), group);
        moving.wait(s.get());
        std::swap(now, next);
      }
      // After as many steps as ranks everybody's numbers are home again.
      const auto result = ranks % 2 == 0 ? mine.get() : other.get();
      CHECK(result == std::vector<int>(count, c.rank() + 100 * ranks));
    });
    CHECK(sent.bytes() == sizeof(int) * count * static_cast<std::size_t>(ranks * ranks));
    CHECK(sent.between(0, 1 % ranks).messages == static_cast<std::uint64_t>(ranks));
  }
}

TEST_CASE("local: several messages to one peer keep their order; empty ones count") {
  run_local(3, [](local& c) {
    const comm::detail::stream s = comm::detail::make_stream();
    numbers<int> from{c, s.get(), {c.rank(), c.rank() + 10, c.rank() + 20}};
    numbers<int> to{c, s.get(), std::vector<int>(3, -1)};
    const int next = (c.rank() + 1) % 3, previous = (c.rank() + 2) % 3;
    const comm::transfer group[] = {
        comm::receive(previous, to.data(), 1), comm::send(next, from.data() + 2, 1),
        comm::send(next, from.data(), 0),      comm::send(next, from.data(), 2),
        comm::receive(previous, to.data(), 0), comm::receive(previous, to.data() + 1, 2)};
    c.start(s.get(), group).wait(s.get());
    CHECK(to.get() == std::vector<int>{previous + 20, previous, previous + 10});
  });
}

TEST_CASE("local: collectives, also of some of the ranks") {
  run_local(6, [](local& c) {
    const comm::detail::stream s = comm::detail::make_stream();
    const auto check = [&](local& part, int first, int step) {
      const int n = part.size(), r = part.rank();
      const auto id = [&](int rank) { return first + step * rank; };
      CHECK(id(r) == c.rank());
      numbers<int> mine{c, s.get(), {c.rank(), -c.rank()}};
      numbers<int> all{c, s.get(), std::vector<int>(2 * static_cast<std::size_t>(n), 99)};
      part.all_gather(s.get(), mine.data(), all.data(), 2 * sizeof(int));
      const std::vector<int> gathered = all.get();
      for (int i = 0; i < n; ++i) {
        CHECK(gathered[2 * i] == id(i));
        CHECK(gathered[2 * i + 1] == -id(i));
      }
      std::vector<int> outgoing;
      std::vector<float> parts;
      for (int i = 0; i < n; ++i) {
        outgoing.push_back(100 * id(r) + id(i));
        parts.push_back(static_cast<float>(id(r)));
        parts.push_back(static_cast<float>(i));
      }
      numbers<int> from{c, s.get(), outgoing};
      numbers<int> to{c, s.get(), std::vector<int>(static_cast<std::size_t>(n), -1)};
      part.all_to_all(s.get(), from.data(), to.data(), sizeof(int));
      const std::vector<int> arrived = to.get();
      for (int i = 0; i < n; ++i) CHECK(arrived[i] == 100 * id(i) + id(r));
      numbers<float> shares{c, s.get(), parts}, sums{c, s.get(), {0, 0}};
      part.reduce_scatter(s.get(), shares.data(), sums.data(), 2);
      float total = 0;
      for (int i = 0; i < n; ++i) total += static_cast<float>(id(i));
      CHECK(sums.get() == std::vector<float>{total, static_cast<float>(n * r)});
    };
    check(c, 0, 1);
    local row = c.split(c.rank() / 3, c.rank());
    local column = c.split(c.rank() % 3, c.rank());
    check(row, c.rank() / 3 * 3, 1);
    check(column, c.rank() % 3, 3);
    local reversed = c.split(0, -c.rank());
    check(reversed, 5, -1);
    local pair = row.split(row.rank() == 0 ? 0 : 1, 0);
    CHECK(pair.size() == (c.rank() % 3 == 0 ? 1 : 2));
  });
}

TEST_CASE("local: ranks on all devices in turn") {
  int devices = 0;
  cudaGetDeviceCount(&devices);
  if (devices == 1) MESSAGE("skipped: messages between devices, there is one");
  comm::local_options how;
  for (int i = 0; i < devices; ++i) how.devices.push_back(i);
  const int ranks = 2 * devices + 1;
  constexpr int count = 100000;
  run_local(
      ranks,
      [&](local& c) {
        CHECK(c.device() == c.rank() % devices);
        const comm::detail::stream s = comm::detail::make_stream();
        numbers<int> mine{c, s.get(), std::vector<int>(count, c.rank())};
        numbers<int> all{c, s.get(), std::vector<int>(static_cast<std::size_t>(count * ranks), -1)};
        slow_add<<<1, 256, 0, s.get()>>>(mine.data(), count, 100);
        c.all_gather(s.get(), mine.data(), all.data(), count * sizeof(int));
        slow_add<<<1, 256, 0, s.get()>>>(mine.data(), count, 100); // not before all have read
        const std::vector<int> got = all.get();
        for (int i = 0; i < ranks; ++i) {
          CHECK(std::count(got.begin() + i * count, got.begin() + (i + 1) * count, 100 + i) ==
                count);
        }
        CHECK(mine.get() == std::vector<int>(count, c.rank() + 200));
        const int token = 0;
        c.share(std::as_bytes(std::span{&token, 1})); // memory goes when all have read it
      },
      how);
}

TEST_CASE("local: when a rank fails the others end with an error that names it") {
  const auto begin = std::chrono::steady_clock::now();
  std::atomic<int> named{0};
  const std::string error = error_of([&] {
    run_local(4, [&](local& c) {
      const comm::detail::stream s = comm::detail::make_stream();
      numbers<int> mine{c, s.get(), std::vector<int>(100, 0)},
          other{c, s.get(), std::vector<int>(100, 0)};
      for (int step = 0; step < 100; ++step) {
        if (c.rank() == 2 && step == 7) throw std::runtime_error{"out of luck"};
        const comm::transfer group[] = {comm::send((c.rank() + 1) % 4, mine.data(), 100),
                                        comm::receive((c.rank() + 3) % 4, other.data(), 100)};
        try {
          c.start(s.get(), group).wait(s.get());
        } catch (const comm::rank_failed& failure) {
          named += failure.rank() == 2;
          throw;
        }
      }
    });
  });
  CHECK(error == "out of luck");
  CHECK(named == 3);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds{5});
}

TEST_CASE("local: messages that do not fit one another") {
  const auto exchange = [](index_t sent, index_t expected, bool receives = true) {
    return error_of([&] {
      run_local(2, [&](local& c) {
        const comm::detail::stream s = comm::detail::make_stream();
        numbers<int> data{c, s.get(), std::vector<int>(8, 0)};
        std::vector<comm::transfer> group;
        if (c.rank() == 0) group.push_back(comm::send(1, data.data(), sent));
        if (c.rank() == 1 && receives) group.push_back(comm::receive(0, data.data(), expected));
        c.start(s.get(), group).wait(s.get());
        cudaStreamSynchronize(s.get());
      });
    });
  };
  CHECK(exchange(4, 4) == "no error");
  CHECK(contains(exchange(4, 5), "rank 1 expects 20 bytes from rank 0, which sent 16"));
  CHECK(contains(exchange(4, 4, false), "rank 0 waits for rank 1, which has ended"));
  const std::string peer = error_of([] {
    run_local(2, [](local& c) {
      const comm::transfer group[] = {comm::send<int>(2, nullptr, 0)};
      c.start(nullptr, group);
    });
  });
  CHECK(contains(peer, "peer is 2, expected 0 to 1"));
  CHECK_THROWS_AS(comm::local_group{0}, std::invalid_argument);
  CHECK_THROWS_AS((comm::local_group{1, {.devices = {1000}}}), std::invalid_argument);
}

TEST_CASE("local: all ranks' work in one graph") {
  const std::string refused =
      error_of([] { run_local(1, [](local& c) { comm::capture(c, nullptr, [] {}); }); });
  CHECK(contains(refused, "take turns"));
  constexpr int ranks = 4, count = 1000;
  run_local(ranks,
            [&](local& c) {
              const comm::detail::stream s = comm::detail::make_stream();
              numbers<int> mine{c, s.get(), std::vector<int>(count, c.rank())};
              numbers<int> other{c, s.get(), std::vector<int>(count, -1)};
              const auto pass = [&] {
                int *now = mine.data(), *next = other.data();
                for (int step = 0; step < ranks; ++step) {
                  slow_add<<<1, 256, 0, s.get()>>>(now, count, 1);
                  const comm::transfer group[] = {
                      comm::send((c.rank() + 1) % ranks, now, count),
                      comm::receive((c.rank() + ranks - 1) % ranks, next, count)};
                  auto moving = c.start(s.get(), group);
                  moving.wait(s.get());
                  std::swap(now, next);
                }
              };
              pass();
              CHECK(mine.get() == std::vector<int>(count, c.rank() + ranks));
              const comm::captured_graph graph = comm::capture(c, s.get(), pass);
              CHECK(mine.get() == std::vector<int>(count, c.rank() + ranks)); // nothing has run
              const int before = 1;
              c.share(std::as_bytes(std::span{&before, 1}));
              if (c.rank() == 0) {
                for (int i = 0; i < 10; ++i) graph.launch(s.get());
                comm::detail::require_cuda(cudaStreamSynchronize(s.get()), "cudaStreamSynchronize");
              } else {
                CHECK_THROWS_AS(graph.launch(s.get()), std::logic_error);
              }
              c.share(std::as_bytes(std::span{&before, 1}));
              CHECK(mine.get() == std::vector<int>(count, c.rank() + 11 * ranks));
            },
            {.devices = {}, .turns = true});
}
