// SPDX-License-Identifier: Apache-2.0
#include <maskring/comm/threads.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <numeric>
#include <random>

namespace {

using namespace maskring;
using comm::run_ranks;
using comm::threads;

static_assert(comm::sharing<threads> && comm::buffer_source<threads>);
static_assert(comm::point_to_point<threads, comm::host_queue>);
static_assert(comm::all_gathering<threads, comm::host_queue>);
static_assert(comm::all_to_all_exchanging<threads, comm::host_queue>);
static_assert(comm::reduce_scattering<threads, comm::host_queue>);
static_assert(!comm::point_to_point<threads, int>);

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

} // namespace

TEST_CASE("threads: a ring of sends and receives does not block, whatever fits the mailboxes") {
  for (std::size_t capacity : {1, 7, 64, 1 << 16}) {
    CAPTURE(capacity);
    for (int ranks : {1, 2, 5}) {
      constexpr int count = 1000;
      const auto sent = run_ranks(
          ranks,
          [&](threads& c) {
            std::vector<int> mine(count, c.rank()), other(count, -1);
            const int next = (c.rank() + 1) % ranks, previous = (c.rank() + ranks - 1) % ranks;
            for (int step = 0; step < ranks; ++step) {
              const comm::transfer group[] = {comm::send(next, mine.data(), count),
                                              comm::receive(previous, other.data(), count)};
              c.start({}, group).wait({});
              CHECK(other == std::vector<int>(count, (c.rank() + 2 * ranks - step - 1) % ranks));
              std::swap(mine, other);
            }
          },
          capacity);
      CHECK(sent.bytes() == sizeof(int) * count * static_cast<std::size_t>(ranks * ranks));
      CHECK(sent.between(0, 1 % ranks).messages == static_cast<std::uint64_t>(ranks));
    }
  }
}

TEST_CASE("threads: messages are copies, and those of one pair keep their order and borders") {
  run_ranks(2, [](threads& c) {
    if (c.rank() == 0) {
      int value = 1;
      c.start({}, std::vector{comm::send(1, &value, 1)}).wait({});
      value = 2;
      const int three[] = {3, 4, 5};
      c.start({}, std::vector{comm::send(1, three, 0), comm::send(1, &value, 1),
                              comm::send(1, three, 3)})
          .wait({});
    } else {
      int got[5] = {};
      c.start({}, std::vector{comm::receive(0, got, 1), comm::receive(0, got, 0),
                              comm::receive(0, got + 1, 1), comm::receive(0, got + 2, 3)})
          .wait({});
      for (int i = 0; i < 5; ++i) CHECK(got[i] == i + 1);
    }
  });
}

TEST_CASE("threads: random groups of messages between all pairs arrive") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  constexpr int ranks = 6, rounds = 40;
  // Lengths of round, sender, receiver; the same on all ranks.
  std::mt19937_64 random{seed};
  std::vector<int> lengths(rounds * ranks * ranks);
  for (int& n : lengths) n = static_cast<int>(random() % 3 == 0 ? 0 : random() % 700);
  const auto length = [&](int round, int from, int to) {
    return lengths[static_cast<std::size_t>((round * ranks + from) * ranks + to)];
  };
  const auto value = [](int round, int from, int to, int i) {
    return round * 1'000'003 + from * 10'007 + to * 101 + i;
  };
  const auto sent = run_ranks(
      ranks,
      [&](threads& c) {
        for (int round = 0; round < rounds; ++round) {
          std::vector<std::vector<int>> out(ranks), in(ranks);
          std::vector<comm::transfer> group;
          for (int peer = 0; peer < ranks; ++peer) {
            for (int i = 0; i < length(round, c.rank(), peer); ++i) {
              out[peer].push_back(value(round, c.rank(), peer, i));
            }
            in[peer].resize(length(round, peer, c.rank()));
            group.push_back(comm::receive(peer, in[peer].data(), index_t(in[peer].size())));
            group.push_back(comm::send(peer, out[peer].data(), index_t(out[peer].size())));
          }
          auto pending = c.start({}, group);
          group.clear();
          pending.wait({});
          for (int peer = 0; peer < ranks; ++peer) {
            for (int i = 0; i < length(round, peer, c.rank()); ++i) {
              REQUIRE(in[peer][i] == value(round, peer, c.rank(), i));
            }
          }
        }
      },
      256);
  CHECK(sent.bytes() ==
        sizeof(int) * std::accumulate(lengths.begin(), lengths.end(), std::size_t{0}));
}

TEST_CASE("threads: collectives") {
  constexpr int ranks = 4;
  run_ranks(ranks, [](threads& c) {
    const int mine = 10 * c.rank();
    int all[ranks] = {};
    c.all_gather({}, &mine, all, sizeof(int));
    for (int r = 0; r < ranks; ++r) CHECK(all[r] == 10 * r);

    int from[ranks], to[ranks] = {};
    for (int r = 0; r < ranks; ++r) from[r] = 100 * c.rank() + r;
    c.all_to_all({}, from, to, sizeof(int));
    for (int r = 0; r < ranks; ++r) CHECK(to[r] == 100 * r + c.rank());

    float parts[2 * ranks], sum[2] = {};
    for (int i = 0; i < 2 * ranks; ++i) parts[i] = static_cast<float>(i * (c.rank() + 1));
    c.reduce_scatter({}, parts, sum, 2);
    for (int i = 0; i < 2; ++i) CHECK(sum[i] == 10.0f * static_cast<float>(2 * c.rank() + i));

    const std::byte one[] = {std::byte(c.rank())};
    CHECK(c.share(one)[2] == std::byte{2});
  });
}

TEST_CASE("threads: when a rank throws, those that wait for others end with its name") {
  using clock = std::chrono::steady_clock;
  std::vector<std::string> errors(5);
  const auto begin = clock::now();
  const std::string thrown = error_of([&] {
    run_ranks(
        5,
        [&](threads& c) {
          if (c.rank() == 3) throw std::out_of_range{"no such token"};
          errors[c.rank()] = error_of([&] {
            std::vector<char> data(1000);
            // 0 waits for the one that failed, 1 for 0, 2 sends more than fits, 4 comes late.
            if (c.rank() == 4) std::this_thread::sleep_for(std::chrono::milliseconds{50});
            const int peer = c.rank() == 0 ? 3 : c.rank() == 1 ? 0 : c.rank() == 2 ? 4 : 2;
            const auto what = c.rank() == 2 ? comm::send(peer, data.data(), 1000)
                                            : comm::receive(peer, data.data(), 10);
            c.start({}, std::vector{what}).wait({});
          });
          if (errors[c.rank()] != "no error") throw std::runtime_error{"a consequence"};
        },
        64);
  });
  CHECK(clock::now() - begin < std::chrono::seconds{1});
  CHECK(thrown == "no such token");
  for (int rank : {0, 1, 2, 4}) {
    CAPTURE(rank);
    CHECK(errors[rank] == "maskring: rank 3 failed: no such token");
  }
}

TEST_CASE("threads: the error that run_ranks throws is the first one, of its own type") {
  CHECK_THROWS_AS(run_ranks(3,
                            [](threads& c) {
                              if (c.rank() == 1) throw std::domain_error{"first"};
                              char byte = 0;
                              c.start({}, std::vector{comm::receive(1, &byte, 1)}).wait({});
                            }),
                  std::domain_error);
  CHECK_THROWS_AS(run_ranks(2, [](threads&) { throw 5; }), int);
}

TEST_CASE("threads: what does not match is an error, not a hang") {
  const auto pair_error = [](auto first, auto second) {
    return error_of([&] {
      run_ranks(2, [&](threads& c) {
        int data[4] = {};
        std::vector<comm::transfer> group;
        if (c.rank() == 0) first(group, data);
        if (c.rank() == 1) second(group, data);
        c.start({}, group).wait({});
      });
    });
  };
  const auto sends = [](int n) {
    return [n](auto& group, int* data) { group.push_back(comm::send(1, data, n)); };
  };
  const auto receives = [](int n) {
    return [n](auto& group, int* data) { group.push_back(comm::receive(0, data, n)); };
  };
  const auto nothing = [](auto&, int*) {};
  CHECK(pair_error(sends(2), receives(2)) == "no error");
  CHECK(contains(pair_error(sends(2), receives(3)),
                 "rank 1 expects 12 bytes from rank 0, which sent 8"));
  CHECK(contains(pair_error(nothing, receives(1)),
                 "rank 1 waits for 4 bytes from rank 0, which has ended"));
  CHECK(contains(pair_error(sends(1), nothing), "rank 1 ended without receiving 12 bytes"));
  CHECK(contains(pair_error([](auto& g, int* d) { g.push_back(comm::send(2, d, 1)); }, nothing),
                 "peer is 2, expected 0 to 1"));
  CHECK(contains(error_of([] { run_ranks(0, [](threads&) {}); }), "ranks is 0, expected 1"));
}
