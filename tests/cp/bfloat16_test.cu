// SPDX-License-Identifier: Apache-2.0
// The drivers on the device with 16-bit elements, several ranks to a GPU.
#include "device_problems.cuh"

#include <maskring/cp/timeline.hpp>

#include <sstream>

using namespace maskring;
using namespace maskring::testing;

TEST_CASE("drivers on a device: as good as one device, whatever the ranks") {
  check_drivers<bfloat16>(std::random_device{}(), 2e-3);
}

TEST_CASE("drivers on a device: different lengths and layouts, more ranks than tokens") {
  check_lengths<bfloat16>(2e-3);
}

TEST_CASE("drivers on a device: errors do not grow with the ranks") {
  const case_sizes s{{1, 8, 8, 64, 64}, 1000, 1000};
  const whole_inputs<bfloat16> in{7, s};
  const any_mask mask{any_mask::causal};
  const auto exact = reference_results_of(in, mask);
  for (const method how : {method::ring, method::all_gather, method::ulysses, method::hybrid}) {
    CAPTURE(std::string{name_of(how)});
    const auto run = [&](int ranks) {
      const any_layout split{"zigzag", 1000, ranks};
      return run_on_device<bfloat16, bfloat16>(how, in, split, split, mask, 1, 0, false);
    };
    // Shards of several query tiles, the last of them short, at 1 and 2 ranks.
    const auto one = run(1), two = run(2), eight = run(8);
    const auto check = [&](const char* name, auto part) {
      CAPTURE(std::string{name});
      const auto error = [&](const auto& got) { return relative_error(part(got), part(exact)); };
      MESSAGE(std::string{name_of(how)}, " ", std::string{name}, ": relative error ", error(one),
              " at 1 rank, ", error(two), " at 2, ", error(eight), " at 8");
      CHECK(error(one) < 4e-3);
      CHECK(error(two) <= 1.05 * error(one));
      CHECK(error(eight) <= 1.05 * error(one));
    };
    check(
        "out", [](const auto& r) -> const auto& { return r.out; });
    check(
        "dq", [](const auto& r) -> const auto& { return r.dq; });
    check(
        "dk", [](const auto& r) -> const auto& { return r.dk; });
    check(
        "dv", [](const auto& r) -> const auto& { return r.dv; });
  }
}

TEST_CASE("drivers on a device: a ring whose steps have other tiles than calls on one device") {
  const case_sizes s{{1, 2, 2, 128, 128}, 1000, 1000};
  const whole_inputs<bfloat16> in{13, s};
  const any_layout split{"zigzag", 1000, 2};
  const auto exact = reference_results_of(in, mask::causal{});
  comm::run_local(2, [&](comm::local& c) {
    const int rank = c.rank();
    auto part = part_of(in, split, rank);
    maskring::cuda::workspace scratch;
    const auto exec = maskring::cuda::on(part.stream(), scratch,
                                         maskring::cuda::unpacked(maskring::cuda::head_dims<128>));
    cp::ring driver{c, s.shape, split, mask::causal{}};
    part.run([&](const auto& given, const auto& out) { driver.forward(exec, given, out); },
             [&](const auto& kept, const auto& up, const auto& grad) {
               driver.backward(exec, kept, up, grad);
             });
    const auto& got = part.read();
    CHECK(relative_error(got.out, shard_of(exact.out, split, rank)) < 4e-3);
    CHECK(relative_error(got.dq, shard_of(exact.dq, split, rank)) < 4e-3);
    CHECK(relative_error(got.dk, shard_of(exact.dk, split, rank)) < 4e-3);
    CHECK(relative_error(got.dv, shard_of(exact.dv, split, rank)) < 4e-3);
    const int token = 0;
    c.share(std::as_bytes(std::span{&token, 1})); // nobody's memory goes before all have done
  });
}

TEST_CASE("drivers on a device: as one graph, replayed, the same bits") {
  const case_sizes s{{1, 4, 4, 64, 64}, 333, 333};
  const whole_inputs<bfloat16> in{8, s, true};
  const any_mask mask{any_mask::window};
  for (const method how : {method::ring, method::all_gather, method::ulysses, method::hybrid}) {
    for (const bool in_place : {true, false}) {
      CAPTURE(std::string{name_of(how)});
      CAPTURE(in_place);
      const any_layout split{"zigzag", 333, how == method::hybrid ? 2 : 4};
      const auto run = [&](int replays) {
        return run_on_device<bfloat16, bfloat16>(how, in, split, split, mask, 2, replays, in_place);
      };
      const auto once = run(0), replayed = run(3);
      CHECK(max_error(once.out, replayed.out) == 0);
      CHECK(max_error(once.lse, replayed.lse) == 0);
      CHECK(max_error(once.dq, replayed.dq) == 0);
      CHECK(max_error(once.dk, replayed.dk) == 0);
      CHECK(max_error(once.dv, replayed.dv) == 0);
      CHECK(max_error(once.dsink, replayed.dsink) == 0);
    }
  }
}

TEST_CASE("drivers on a device: a driver may outlive the streams of its calls") {
  const case_sizes s{{1, 2, 2, 64, 64}, 256, 256};
  const whole_inputs<bfloat16> in{12, s};
  const any_layout split{"zigzag", 256, 2};
  const any_mask mask{any_mask::causal};
  const auto exact = reference_results_of(in, mask);
  comm::run_local(2, [&](comm::local& c) {
    cp::ring driver{c, s.shape, split, mask};
    for (int i = 0; i < 3; ++i) {
      auto part = part_of(in, split, c.rank());
      part.run([&](const auto& given, const auto& out) { driver.forward(part.exec(), given, out); },
               [&](const auto& kept, const auto& up, const auto& grad) {
                 driver.backward(part.exec(), kept, up, grad);
               });
      CHECK(relative_error(part.read().out, shard_of(exact.out, split, c.rank())) < 1e-2);
      const int token = 0;
      c.share(std::as_bytes(std::span{&token, 1})); // nobody's memory goes before all have done
    }
  });
}

TEST_CASE("drivers on a device: a timeline of events") {
  const case_sizes s{{1, 4, 4, 64, 64}, 256, 256};
  const whole_inputs<bfloat16> in{11, s};
  const cp::shards split{any_layout{"contiguous", 256, 4}};
  cp::timeline record;
  const auto make = [&](comm::local& c) {
    cp::ring driver{c, s.shape, split, any_mask{any_mask::causal}};
    driver.record(&record);
    return driver;
  };
  device_split_results<bfloat16, bfloat16>(in, split, make, 0, nullptr, false);
  std::ostringstream text;
  record.write(text);
  const std::string trace = text.str();
  const auto count = [&](const std::string& part) {
    int found = 0;
    for (auto at = trace.find(part); at != std::string::npos; at = trace.find(part, at + 1))
      ++found;
    return found;
  };
  CHECK(count("\"cat\": \"compute\"") == 2 * 10); // forward and backward: 4 + 3 + 2 + 1 steps
  CHECK(count("\"name\": \"forward step 3 skipped\"") == 3);
  CHECK(count("\"name\": \"forward step 0\", \"cat\": \"receive\"") == 3);
  CHECK(count("\"name\": \"forward step 0\", \"cat\": \"send\"") == 3);
  CHECK(count("\"dur\": -") == 0);
  CHECK(count("nan") == 0);
}

TEST_CASE("drivers on a device: a window's traffic does not grow with the ranks") {
  const case_sizes s{{1, 2, 2, 64, 64}, 2048, 2048};
  const whole_inputs<bfloat16> in{9, s};
  const any_mask mask{any_mask::window};
  comm::traffic sent;
  const cp::shards split{any_layout{"contiguous", 2048, 8}};
  device_split_results<bfloat16, bfloat16>(
      in, split,
      [&](comm::local& c) {
        return cp::ring{c, s.shape, split, mask};
      },
      0, &sent, false);
  for (int from = 0; from < 8; ++from) {
    for (int to = 0; to < 8; ++to) {
      const bool neighbours = to == from + 1 || to == from - 1;
      CHECK((sent.between(from, to).bytes > 0) == neighbours);
    }
  }
}

TEST_CASE("drivers on a device: a rank that fails in the middle of a ring ends the others") {
  const case_sizes s{{1, 2, 2, 64, 64}, 512, 512};
  const whole_inputs<bfloat16> in{10, s};
  const any_layout split{"zigzag", 512, 4};
  std::atomic<int> named{0};
  std::string error;
  try {
    comm::run_local(4, [&](comm::local& c) {
      const int rank = c.rank();
      auto part = part_of(in, split, rank);
      cp::ring driver{c, s.shape, split, any_mask{any_mask::causal}};
      const auto pass = [&] {
        part.run(
            [&](const auto& given, const auto& out) { driver.forward(part.exec(), given, out); },
            [](const auto&...) {});
      };
      pass();
      if (rank == 3) throw std::runtime_error{"rank 3 is gone"};
      try {
        for (int i = 0; i < 10; ++i) pass();
      } catch (const comm::rank_failed& failure) {
        named += failure.rank() == 3;
        throw;
      }
    });
  } catch (const std::exception& failure) {
    error = failure.what();
  }
  CHECK(error == "rank 3 is gone");
  CHECK(named == 3);
}
