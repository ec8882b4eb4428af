// SPDX-License-Identifier: Apache-2.0
// What the drivers allocate, in shards: the bytes of one rank's 16-bit keys and values.
#include "problems.hpp"

#include <maskring/cp/ulysses.hpp>

#include <doctest/doctest.h>

#include <mutex>

using namespace maskring;
using namespace maskring::testing;

namespace {

/// Threads that count what they hand out and take back.
struct counting : comm::threads {
  struct buffer : comm::threads::buffer {
    std::shared_ptr<std::size_t> held;
  };

  counting(comm::threads ranks, bool one_memory) : threads{ranks}, one_memory_{one_memory} {}
  bool shares_memory() const { return one_memory_; }
  std::size_t allocated() const { return *allocated_; }

  buffer allocate(std::size_t bytes) {
    *allocated_ += bytes;
    const auto give_back = [all = allocated_](std::size_t* held) {
      *all -= *held;
      delete held;
    };
    return {comm::threads::buffer{bytes},
            std::shared_ptr<std::size_t>{new std::size_t{bytes}, give_back}};
  }

private:
  bool one_memory_;
  std::shared_ptr<std::size_t> allocated_ = std::make_shared<std::size_t>(0);
};

struct shards_kept {
  double forward = 0, backward = 0; ///< mean over the ranks
};

/// 64 tokens a rank of equal heads and dims; bfloat16 throughout.
template <class Make>
shards_kept memory_of(int ranks, bool one_memory, Make make) {
  const shard::contiguous split{64 * ranks, ranks};
  const cp::shape shape{1, 4, 4, 16, 16};
  shards_kept sum;
  std::mutex mutex;
  comm::run_ranks(ranks, [&](comm::threads& c) {
    counting counted{c, one_memory};
    auto driver = make(counted, shape, split);
    using bits = tensor<bfloat16, 4>;
    bits q{{1, 4, 64, 16}}, k{q}, v{q}, out{q}, dq{q}, dk{q}, dv{q};
    tensor<float, 3> lse{{1, 4, 64}};
    const double shard = 2.0 * 4 * 64 * 16 * sizeof(bfloat16);
    driver.forward(host{1}, inputs{*q, *k, *v}, results{*out, *lse});
    const double forward = static_cast<double>(counted.allocated()) / shard;
    driver.backward(host{1}, saved{*q, *k, *v, *out, *lse}, upstream{*q}, gradients{*dq, *dk, *dv});
    const double both = static_cast<double>(counted.allocated()) / shard;
    const std::lock_guard lock{mutex};
    sum.forward += forward / ranks;
    sum.backward += both / ranks;
  });
  return sum;
}

} // namespace

// What the host adds, and devices do not: sums of rows beside the state (1/16 of it), and what sums
// of dk and dv lose by rounding, 2 shards. A device's workspace has what dq takes here, 1.
TEST_CASE("memory: a ring keeps two shards and the state, and part of the gradients on their way") {
  const auto make = [](counting& c, const cp::shape& shape, const auto& split) {
    cp::ring driver{c, shape, split, mask::full{}};
    driver.smallest_cut(1);
    return driver;
  };
  const shards_kept sent = memory_of(4, false, make);
  CHECK(sent.forward == doctest::Approx(2 + 1).epsilon(0.05));
  CHECK(sent.backward == doctest::Approx(2 + 3 + 3 * 0.5 + 2).epsilon(0.05));
  const shards_kept in_place = memory_of(4, true, make);
  CHECK(in_place.forward == doctest::Approx(1).epsilon(0.1));
  CHECK(in_place.backward == doctest::Approx(3 + 2).epsilon(0.05));
}

TEST_CASE("memory: an all-gather keeps all keys, and in place one copy of them") {
  const auto make = [](counting& c, const cp::shape& shape, const auto& split) {
    return cp::all_gather{c, shape, split, mask::full{}};
  };
  const shards_kept in_place = memory_of(8, true, make);
  CHECK(in_place.forward == doctest::Approx(1).epsilon(0.05));
  CHECK(in_place.backward == doctest::Approx(1 + 2 + 1).epsilon(0.05));
  const shards_kept sent = memory_of(8, false, make);
  CHECK(sent.forward == doctest::Approx(8 + 2).epsilon(0.05));
  CHECK(sent.backward <= 8 + 16 + 8 + 3 + 2.1);
}

TEST_CASE("memory: Ulysses keeps all that its call reads and writes, and what is exchanged") {
  const shards_kept kept =
      memory_of(4, false, [](counting& c, const cp::shape& shape, const auto& split) {
        return cp::ulysses{c, shape, split, mask::full{}};
      });
  const double calls = 3 * 0.5 + 0.5, arriving = 3 * 0.5 * 3 / 4, leaving = 0.5;
  CHECK(kept.forward == doctest::Approx(calls + arriving + leaving).epsilon(0.06));
  // dout and gradients in their own type.
  const double more = 0.5 + 3 * 0.5 + 2 * leaving;
  CHECK(kept.backward == doctest::Approx(calls + arriving + leaving + more).epsilon(0.06));
}
