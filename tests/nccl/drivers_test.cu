// SPDX-License-Identifier: Apache-2.0
// The drivers over NCCL: their results, what ranks do that disagree, and what they do when one of
// them is killed.
#include "../cp/device_problems.cuh"
#include "ranks.cuh"

#include <maskring/cp/timeline.hpp>

#include <sstream>

using namespace maskring;
using namespace maskring::testing;
using namespace std::chrono_literals;

namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// This rank's shard by a driver against the reference.
template <class Split, class Driver>
void check_driver(const char* name, nccl& c, const whole_inputs<bfloat16>& in,
                  const whole_results<double>& exact, const Split& split, Driver&& driver) {
  CAPTURE(std::string{name});
  auto part = part_of(in, split, c.rank());
  for (int repeat = 0; repeat < 2; ++repeat) {
    part.run([&](const auto& given, const auto& out) { driver.forward(part.exec(), given, out); },
             [&](const auto& kept, const auto& up, const auto& grad) {
               driver.backward(part.exec(), kept, up, grad);
             });
  }
  c.synchronize(part.stream());
  const auto& got = part.read();
  const auto close = [&](const char* what, const auto& is, const auto& whole, double bound) {
    CAPTURE(std::string{what});
    CHECK(relative_error(is, shard_of(whole, split, c.rank())) < bound);
  };
  close("out", got.out, exact.out, 1e-2);
  close("dq", got.dq, exact.dq, 2e-2);
  close("dk", got.dk, exact.dk, 2e-2);
  close("dv", got.dv, exact.dv, 2e-2);
}

} // namespace

TEST_CASE("rank: the drivers under masks and layouts, with grouped heads and odd lengths") {
  nccl c = comm::from_environment({.time_limit = 60s});
  const int n = c.size();
  const case_sizes s{{1, 4, 2, 64, 64}, 301, 301};
  const whole_inputs<bfloat16> in{5, s, true};
  for (const int kind : {any_mask::causal, any_mask::window, any_mask::scattered}) {
    const any_mask mask{kind};
    const auto exact = reference_results_of(in, mask);
    for (const char* layout : {"contiguous", "zigzag", "striped"}) {
      CAPTURE(kind);
      CAPTURE(std::string{layout});
      const any_layout split{layout, 301, n};
      check_driver("ring", c, in, exact, split, cp::ring{c, s.shape, split, mask});
      check_driver("all-gather", c, in, exact, split, cp::all_gather{c, s.shape, split, mask});
      if (4 % n != 0) continue;
      check_driver("ulysses", c, in, exact, split, cp::ulysses{c, s.shape, split, mask});
      for (const int inside : {1, 2, 4}) {
        if (n % inside != 0) continue;
        CAPTURE(inside);
        const shard::subdivided mesh{any_layout{layout, 301, n / inside}, inside};
        check_driver("hybrid", c, in, exact, mesh, cp::hybrid{c, s.shape, mesh, mask});
      }
    }
  }
}

TEST_CASE("rank: a timeline has the messages") {
  nccl c = comm::from_environment({.time_limit = 30s});
  const case_sizes s{{1, 4, 2, 64, 64}, 301, 301};
  const whole_inputs<bfloat16> in{6, s};
  const any_layout split{"zigzag", 301, c.size()};
  cp::ring driver{c, s.shape, split, any_mask{any_mask::causal}};
  auto part = part_of(in, split, c.rank());
  cp::timeline record;
  driver.record(&record);
  part.run([&](const auto& given, const auto& out) { driver.forward(part.exec(), given, out); },
           [](const auto&...) {});
  c.synchronize(part.stream());
  std::ostringstream text;
  record.write(text);
  CHECK(contains(text.str(), "\"name\": \"forward step 0\", \"cat\": \"compute\""));
  CHECK(contains(text.str(), "\"name\": \"forward step 0\", \"cat\": \"send\"") == (c.size() > 1));
  CHECK(contains(text.str(), "\"name\": \"forward step 0\", \"cat\": \"receive\"") ==
        (c.size() > 1));
}

TEST_CASE("rank: ranks that disagree find out at construction, and can go on") {
  nccl c = comm::from_environment({.time_limit = 30s});
  if (c.size() == 1) return;
  const cp::shape sizes{1, 4, 2, 64, 64};
  const any_layout split{"zigzag", 300, c.size()};
  const any_mask mask{any_mask::causal};
  const bool other = c.rank() == 1;
  const auto refusal = [](auto make) {
    try {
      make();
    } catch (const std::invalid_argument& error) {
      return std::string{error.what()};
    }
    return std::string{"no error"};
  };
  const auto ring_of = [&](const cp::shape& sh, const any_layout& l, const any_mask& m) {
    return refusal([&] { cp::ring{c, sh, l, m}; });
  };
  const auto check = [](const std::string& text, const char* expected) {
    CAPTURE(text);
    CHECK(contains(text, expected));
  };
  cp::shape odd = sizes;
  odd.q_heads += 2 * other;
  check(ring_of(odd, split, mask), "q_heads is 6 on rank 1 and 4 on rank 0");
  odd = sizes;
  odd.batch -= other; // bad on one rank, an error on all
  check(ring_of(odd, split, mask), "batch is 0 on rank 1 and 1 on rank 0");
  check(ring_of(sizes, any_layout{"zigzag", 300 + other, c.size()}, mask),
        "query sequence is 301 on rank 1 and 300 on rank 0");
  check(ring_of(sizes, any_layout{other ? "striped" : "zigzag", 300, c.size()}, mask),
        "rank 1 has another query layout than rank 0");
  check(ring_of(sizes, split, any_mask{other ? any_mask::window : any_mask::causal}),
        "rank 1 has another mask than rank 0");
  check(refusal([&] {
          cp::ring{c, sizes, split, mask, score::none{}, {.scale = other ? 0.5f : 0.25f}};
        }),
        "rank 1 has another scale than rank 0");
  check(refusal([&] {
          if (other) {
            cp::all_gather{c, sizes, split, mask};
          } else {
            cp::ring{c, sizes, split, mask};
          }
        }),
        "rank 1 has another driver than rank 0");
  CHECK(ring_of(sizes, split, mask) == "no error");
}

TEST_CASE("victim: a rank is killed in the middle of a ring step" *
          doctest::skip(!started_as_rank())) {
  constexpr auto limit = 3s;
  const bool ahead = std::getenv("MASKRING_TEST_AHEAD") != nullptr;
  const case_sizes s{{1, 8, 8, 64, 64}, 4096, 4096};
  const whole_inputs<bfloat16> in{7, s}; // before the ranks meet, after which they are watched
  nccl c = comm::from_environment({.time_limit = limit});
  const any_layout split{"zigzag", 4096, c.size()};
  auto part = part_of(in, split, c.rank());
  cp::ring driver{c, s.shape, split, any_mask{any_mask::causal}};
  const auto pass = [&] {
    part.run([&](const auto& given, const auto& out) { driver.forward(part.exec(), given, out); },
             [](const auto&...) {});
    if (!ahead) c.synchronize(part.stream());
  };
  pass(); // makes maps and connections
  c.synchronize(part.stream());
  const int token = 0;
  c.share(std::as_bytes(std::span{&token, 1})); // all have
  std::thread killer;
  if (c.rank() == c.size() - 1) {
    killer = std::thread{[] {
      std::this_thread::sleep_for(200ms);
      raise(SIGKILL);
    }};
  }
  std::string operation;
  auto alive = std::chrono::steady_clock::now();
  try {
    for (;; alive = std::chrono::steady_clock::now()) pass();
  } catch (const comm::timed_out& error) {
    operation = error.operation();
    CHECK(error.limit() == limit);
    CHECK(contains(error.what(), "did not end within 3000 ms"));
    MESSAGE(std::string{error.what()});
  } catch (const comm::nccl_error& error) {
    operation = error.what();
    MESSAGE(operation);
  }
  if (!ahead) CHECK(std::chrono::steady_clock::now() - alive < limit + 1s);
  CHECK(contains(operation, "receive from rank"));
  CHECK_THROWS(c.require_alive());
  CHECK(cudaStreamSynchronize(part.stream()) == cudaSuccess); // although nobody will ever send
}

namespace {

/// The last rank is killed; the others must end well, and not much later than the limit.
void check_killed(std::map<std::string, std::string> variables) {
  const int ranks = possible_ranks(variables);
  if (ranks == 1) return;
  const auto ended = run_job(ranks, "victim:*", variables, 60s);
  REQUIRE(ended.size() == static_cast<std::size_t>(ranks));
  REQUIRE(WIFSIGNALED(ended.back().status));
  CHECK(WTERMSIG(ended.back().status) == SIGKILL);
  CHECK(ended.back().ended);
  for (int rank = 0; rank + 1 < ranks; ++rank) {
    CAPTURE(rank);
    const ended_process& survivor = ended[static_cast<std::size_t>(rank)];
    CHECK(survivor.exited_with(0));
    CHECK(survivor.seconds - ended.back().seconds < 3 + 5); // with the end of the process
    MESSAGE("rank ", rank, " ended ", survivor.seconds - ended.back().seconds,
            " s after the last rank was killed");
  }
}

} // namespace

TEST_CASE("processes: the drivers with several ranks" * doctest::skip(started_as_rank())) {
  check_as_processes("rank: the drivers*", 120s);
}

TEST_CASE("processes: a timeline of several ranks" * doctest::skip(started_as_rank())) {
  check_as_processes("rank: a timeline*", 60s);
}

TEST_CASE("processes: ranks that disagree" * doctest::skip(started_as_rank())) {
  check_as_processes("rank: ranks that disagree*", 60s);
}

TEST_CASE("processes: the others end within the time limit when a rank is killed" *
          doctest::skip(started_as_rank())) {
  check_killed({});
}

TEST_CASE("processes: so they do where the host has queued far more than the streams hold" *
          doctest::skip(started_as_rank())) {
  check_killed({{"MASKRING_TEST_AHEAD", "1"}});
}
