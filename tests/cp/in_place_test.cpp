// SPDX-License-Identifier: Apache-2.0
// Drivers whose ranks read and add to one another's tensors where they lie.
#include "../../examples/support/any_layout.hpp"
#include "../../examples/support/any_mask.hpp"
#include "problems.hpp"

#include <maskring/cp/automatic.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <cstring>

namespace {

using namespace maskring;
using namespace maskring::testing;
using examples::any_layout;
using any_shards = cp::shards<any_layout, any_layout>;

/// Threads that say of themselves that they share memory. Their buffers hold no numbers any more
/// when they have been given back, and all ranks but the first are late after each exchange.
struct one_memory : comm::threads {
  struct buffer : comm::threads::buffer {
    buffer(std::size_t size) : comm::threads::buffer{size}, bytes{size} {}
    buffer(buffer&&) = default;
    ~buffer() {
      if (data()) std::memset(data(), 0xff, bytes);
    }
    std::size_t bytes;
  };
  struct pending {
    void wait(comm::host_queue queue) {
      inner.wait(queue);
      if (late) std::this_thread::sleep_for(std::chrono::milliseconds{2});
    }
    comm::threads::pending inner;
    bool late;
  };

  explicit one_memory(const comm::threads& ranks, bool late = false)
      : threads{ranks}, late{late && ranks.rank() > 0} {}
  bool shares_memory() const { return true; }
  buffer allocate(std::size_t bytes) { return {bytes}; }
  pending start(comm::host_queue queue, std::span<const comm::transfer> group) {
    return {threads::start(queue, group), late};
  }

  bool late;
};
static_assert(comm::memory_sharing<one_memory> && !comm::memory_sharing<comm::threads>);

/// A driver with a communicator of its own.
template <template <class...> class Driver, class Mask>
struct in_place {
  std::unique_ptr<one_memory> comm;
  Driver<one_memory, any_layout, any_layout, Mask, score::none> driver;

  in_place(const comm::threads& ranks, const cp::shape& s, const any_shards& split,
           const Mask& mask, const options& opt = {}, bool late = false)
      : comm{std::make_unique<one_memory>(ranks, late)}, driver{*comm, s, split, mask, {}, opt} {}
  void forward(const auto&... arguments) { driver.forward(arguments...); }
  void backward(const auto&... arguments) { driver.backward(arguments...); }
};

/// Checks what each driver finds.
template <class Mask, class Check>
void each_in_place(const whole_inputs<bfloat16>& in, const any_shards& split, const Mask& mask,
                   Check check, bool late = false) {
  const cp::shape& shape = in.sizes.shape;
  check(split_results<bfloat16, bfloat16>(in, split, [&](comm::threads& c) {
    return in_place<cp::ring, Mask>{c, shape, split, mask, {}, late};
  }));
  check(split_results<bfloat16, bfloat16>(in, split, [&](comm::threads& c) {
    return in_place<cp::all_gather, Mask>{c, shape, split, mask, {}, late};
  }));
}

} // namespace

TEST_CASE("in place: a ring whose ranks share memory sends nothing and finds the same") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(static_cast<unsigned>(seed));
  const auto roll = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  for (const char* name : {"full", "causal", "sliding_window:9", "document", "!causal"}) {
    for (int ranks : {1, 2, 3, 7}) {
      for (const char* layout : {"contiguous", "zigzag", "striped"}) {
        CAPTURE(name);
        CAPTURE(ranks);
        CAPTURE(layout);
        const int q_len = roll(90), kv_len = roll(90);
        const case_sizes s{{2, 4, 2, 8, 6}, q_len, kv_len};
        examples::mask_library library{{2, 4, q_len, kv_len}};
        const auto mask = library(name);
        const whole_inputs<> in{random(), s, roll(2) == 0};
        const any_shards split{any_layout{layout, q_len, ranks},
                               any_layout{"zigzag", kv_len, ranks}};
        const options opt{.tile = {1 + roll(20), 1 + roll(20)}};
        comm::traffic sent;
        const auto make = [&](comm::threads& c) {
          return in_place<cp::ring, examples::any_mask>{c, s.shape, split, mask, opt};
        };
        const auto got = split_results<float, float>(in, split, make, &sent, 3);
        CHECK(largest_error(got, reference_results_of(in, mask)) < 2e-5);
        // What is shared for set-up has a fixed size.
        for (int from = 0; from < ranks; ++from) {
          for (int to = 0; to < ranks; ++to) CHECK(sent.between(from, to).bytes < 4096);
        }
      }
    }
  }
}

TEST_CASE("in place: ranks that share memory, and have no keys or no queries, take their turns") {
  const int lengths[][2] = {{5, 70}, {1, 30}, {30, 1}, {3, 3}, {0, 20}, {20, 0}, {0, 0}};
  std::uint64_t seed = 60;
  for (const auto& [q_len, kv_len] : lengths) {
    for (const char* name : {"sliding_window:9", "full"}) {
      CAPTURE(q_len);
      CAPTURE(kv_len);
      CAPTURE(name);
      const case_sizes s{{2, 2, 2, 8, 8}, q_len, kv_len};
      examples::mask_library library{{2, 2, q_len, kv_len}};
      const auto mask = library(name);
      const whole_inputs<bfloat16> in{++seed, s, true};
      const auto exact = reference_results_of(in, mask);
      const auto local = local_results<bfloat16, bfloat16>(in, mask);
      const any_shards split{any_layout{"zigzag", q_len, 4}, any_layout{"striped", kv_len, 4}};
      each_in_place(in, split, mask, [&](const auto& got) {
        CHECK(largest_error(got, exact) <= 1.05 * largest_error(local, exact) + 1e-6);
      });
    }
  }
}

TEST_CASE("in place: ranks that share memory round each gradient once") {
  const case_sizes s{{1, 4, 2, 16, 16}, 120, 120};
  const whole_inputs<bfloat16> in{21, s, true};
  examples::mask_library library{{1, 4, 120, 120}};
  const auto mask = library("causal");
  const auto exact = reference_results_of(in, mask);
  const auto local = local_results<bfloat16, bfloat16>(in, mask);
  const any_shards split{any_layout{"zigzag", 120, 4}};
  const auto check = [&](const auto& got) {
    CHECK(max_error(got.dq, exact.dq) <= 1.05 * max_error(local.dq, exact.dq) + 1e-6);
    CHECK(max_error(got.dk, exact.dk) <= 1.05 * max_error(local.dk, exact.dk) + 1e-6);
    CHECK(max_error(got.dv, exact.dv) <= 1.05 * max_error(local.dv, exact.dv) + 1e-6);
  };
  each_in_place(in, split, mask, check);
}

TEST_CASE("automatic: gathers in place what many ranks need, and is a ring elsewhere") {
  const case_sizes s{{1, 4, 2, 8, 8}, 160, 160};
  const whole_inputs<> in{23, s, true};
  examples::mask_library library{{1, 4, 160, 160}};
  const any_shards split{any_layout{"zigzag", 160, 4}};
  for (const auto& [name, gathers] : {std::pair{"causal", true}, {"sliding_window:9", false}}) {
    CAPTURE(name);
    const auto mask = library(name);
    const auto exact = reference_results_of(in, mask);
    const auto in_one_memory = split_results<float, float>(in, split, [&](comm::threads& c) {
      in_place<cp::automatic, examples::any_mask> made{c, s.shape, split, mask};
      CHECK(made.driver.gathers() == gathers);
      return made;
    });
    CHECK(largest_error(in_one_memory, exact) < 2e-5);
    const auto sent = split_results<float, float>(in, split, [&](comm::threads& c) {
      cp::automatic made{c, s.shape, split, mask};
      CHECK_FALSE(made.gathers());
      return made;
    });
    CHECK(largest_error(sent, exact) < 2e-5);
  }
}

TEST_CASE("in place: a rank that has done may end, however late others are") {
  const case_sizes s{{1, 2, 2, 8, 8}, 64, 64};
  const whole_inputs<bfloat16> in{22, s};
  examples::mask_library library{{1, 2, 64, 64}};
  const auto mask = library("full");
  const auto exact = reference_results_of(in, mask);
  const auto local = local_results<bfloat16, bfloat16>(in, mask);
  const any_shards split{any_layout{"zigzag", 64, 4}};
  const auto check = [&](const auto& got) {
    CHECK(largest_error(got, exact) <= 1.05 * largest_error(local, exact) + 1e-6);
  };
  each_in_place(in, split, mask, check, true);
}
