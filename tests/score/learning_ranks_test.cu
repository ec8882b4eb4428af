// SPDX-License-Identifier: Apache-2.0
// What score modifiers and sinks learn over several ranks, which share devices.
#include "device_learning.cuh"

#include <maskring/cp/sum.hpp>

#include <memory>

using namespace maskring;
using namespace maskring::testing;

namespace {

const case_sizes sizes{
    {.batch = 2, .q_heads = 4, .kv_heads = 4, .qk_dim = 40, .v_dim = 24}, 203, 203};

// By any driver: `make(comm, split, score)` gives it. Every rank learns with sums of its own.
template <class T, class Learned, class Split, class Make>
void check_ranks(Learned& learned, const Split& split, std::uint64_t seed, Make make) {
  const whole_inputs<T> in{seed, sizes, true};
  const mask::sliding_window mask{110};
  const expected_gradient expected{in, mask, learned};
  const auto exact = reference_results_of(in, mask, learned.on_host());
  using copy = typename Learned::device_copy;
  const auto ranks = static_cast<std::size_t>(split.q.ranks());
  std::vector<std::unique_ptr<copy>> copies(ranks);
  const auto found = device_split_results<T, T>(in, split, [&](comm::local& c) {
    auto& mine = copies[static_cast<std::size_t>(c.rank())];
    mine = std::make_unique<copy>(learned);
    const auto score = mine->modifier();
    return make(c, split, mask, score);
  });
  std::vector<std::vector<double>> sums(ranks);
  comm::run_local(split.q.ranks(), [&](comm::local& c) {
    const auto rank = static_cast<std::size_t>(c.rank());
    sums[rank] = copies[rank]->gradient();
    cp::sum_over_ranks(c, std::span{sums[rank]});
  });
  expected.check(sums[0]);
  for (const auto& sum : sums) CHECK(sum == sums[0]);
  for (index_t h = 0; h < sizes.shape.q_heads; ++h) {
    CHECK(double{found.dsink(h)} == doctest::Approx(exact.dsink(h)).epsilon(0.02).scale(1.0));
  }
}

constexpr auto ring = [](auto& c, const auto& split, const auto& mask, const auto& score) {
  return cp::ring{c, sizes.shape, split, mask, score};
};

template <class T, class Learned>
void check_ring(Learned learned, std::uint64_t seed) {
  CAPTURE(seed);
  for (const char* name : {"contiguous", "zigzag", "striped"}) {
    CAPTURE(std::string{name});
    check_ranks<T>(learned, cp::shards{any_layout{name, 203, 4}}, seed, ring);
  }
}

} // namespace

TEST_CASE("over ranks of a device the parts of a table's gradient add up to the whole: ring") {
  const std::uint64_t seed = std::random_device{}();
  check_ring<bfloat16>(learned_bias{4}, seed);
  check_ring<float>(learned_bias{1}, seed);
}

TEST_CASE("over ranks of a device the parts of a table's gradient add up to the whole: others") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  learned_bias learned{4};
  const cp::shards split{any_layout{"zigzag", 203, 4}};
  check_ranks<bfloat16>(learned, split, seed, [](auto& c, auto& of, auto& mask, auto& score) {
    return cp::all_gather{c, sizes.shape, of, mask, score};
  });
  check_ranks<bfloat16>(learned, split, seed, [](auto& c, auto& of, auto& mask, auto& score) {
    return cp::ulysses{c, sizes.shape, of, mask, score};
  });
  const cp::shards mesh{shard::subdivided{any_layout{"zigzag", 203, 2}, 2}};
  check_ranks<bfloat16>(learned, mesh, seed, [](auto& c, auto& of, auto& mask, auto& score) {
    return cp::hybrid{c, sizes.shape, of, mask, score};
  });
}

TEST_CASE("over ranks of a device the parts of rotated queries' and keys' gradients add up") {
  const case_sizes of = sizes;
  check_ring<float>(learned_rotary{of}, std::random_device{}());
}
