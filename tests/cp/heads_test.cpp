// SPDX-License-Identifier: Apache-2.0
// The drivers that share out heads, on the host: cp::ulysses and cp::hybrid.
#include "../../examples/support/any_layout.hpp"
#include "../../examples/support/any_mask.hpp"
#include "problems.hpp"

#include <maskring/cp/hybrid.hpp>
#include <maskring/cp/ulysses.hpp>

#include <doctest/doctest.h>

namespace {

using namespace maskring;
using namespace maskring::testing;
using comm::threads;
using examples::any_layout;

constexpr const char* layouts[] = {"contiguous", "zigzag", "striped"};

/// Depends on everything, heads included.
struct tilted {
  constexpr auto operator()(auto s, int b, int h, int q, int kv) const {
    return 3.0f * tanh(s / 3.0f) + 0.05f * static_cast<float>((h + 1 - b) * (kv - q) % 40);
  }
};

/// A window that grows with the head.
struct wider_heads {
  constexpr auto operator()(auto, auto h, auto q, auto kv) const {
    return (q >= kv) & (q - kv <= 5 * h);
  }
};

template <class O = float, class G = O, class T, class Mask, class Score = score::none>
whole_results<O, G> run_ulysses(const whole_inputs<T>& in,
                                const cp::shards<any_layout, any_layout>& split, const Mask& mask,
                                const Score& score = {}, const options& opt = {}, int repeats = 1) {
  return split_results<O, G>(
      in, split,
      [&](threads& c) { return cp::ulysses{c, in.sizes.shape, split, mask, score, opt}; }, nullptr,
      repeats);
}

template <class O = float, class G = O, class T, class Mask, class Score = score::none>
whole_results<O, G> run_hybrid(const whole_inputs<T>& in, const any_layout& q, const any_layout& kv,
                               int inside, const Mask& mask, const Score& score = {},
                               const options& opt = {}, int repeats = 1) {
  const cp::shards split{shard::subdivided{q, inside}, shard::subdivided{kv, inside}};
  return split_results<O, G>(
      in, split, [&](threads& c) { return cp::hybrid{c, in.sizes.shape, split, mask, score, opt}; },
      nullptr, repeats);
}

std::string refusal(int ranks, const cp::shape& sizes, int inside = 0) {
  try {
    comm::run_ranks(ranks, [&](threads& c) {
      if (inside > 0) {
        const shard::subdivided split{shard::contiguous{64, ranks / inside}, inside};
        cp::hybrid{c, sizes, split, mask::causal{}};
      } else {
        cp::ulysses{c, sizes, shard::contiguous{64, ranks}, mask::causal{}};
      }
    });
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

} // namespace

TEST_CASE("ulysses: layouts x ranks x heads x masks, odd lengths") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(static_cast<unsigned>(seed));
  const auto roll = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  for (const char* name : {"full", "causal", "sliding_window:9", "document_causal", "branching"}) {
    for (int ranks : {1, 2, 4, 7, 8}) {
      for (const char* layout : layouts) {
        // Key heads: a multiple of the ranks, as many, or a divisor.
        const int kv_heads = roll(3) == 0                ? 1
                             : ranks % 2 == 0 && roll(2) ? ranks / 2
                                                         : ranks * (1 + roll(2));
        const int group = kv_heads % ranks == 0 ? 1 + roll(3) : ranks / kv_heads * (1 + roll(2));
        const int tokens = 20 + roll(60);
        const case_sizes s{
            {1 + roll(2), kv_heads * group, kv_heads, 1 + roll(12), 1 + roll(12)}, tokens, tokens};
        CAPTURE(name);
        CAPTURE(ranks);
        CAPTURE(layout);
        CAPTURE(kv_heads);
        CAPTURE(group);
        CAPTURE(tokens);
        examples::mask_library library{
            {static_cast<int>(s.shape.batch), static_cast<int>(s.shape.q_heads), tokens, tokens}};
        const auto mask = library(name);
        const whole_inputs<> in{random(), s, roll(2) == 0};
        const auto got =
            run_ulysses(in, {any_layout{layout, tokens, ranks}}, mask, {}, {.tile = {16, 8}});
        CHECK(largest_error(got, reference_results_of(in, mask)) < 4e-5);
      }
    }
  }
}

TEST_CASE("ulysses and hybrid: masks and score modifiers see the heads of the whole problem") {
  const case_sizes s{{2, 8, 4, 8, 8}, 60, 60};
  const whole_inputs<> in{3, s, true};
  const auto expected = reference_results_of(in, wider_heads{}, tilted{}, {.scale = 0.3f});
  const options opt{.scale = 0.3f, .tile = {16, 16}};
  const auto a = run_ulysses(in, {any_layout{"zigzag", 60, 8}}, wider_heads{}, tilted{}, opt);
  CHECK(largest_error(a, expected) < 2e-5);
  const any_layout outer{"zigzag", 60, 2};
  const auto b = run_hybrid(in, outer, outer, 4, wider_heads{}, tilted{}, opt);
  CHECK(largest_error(b, expected) < 2e-5);
}

TEST_CASE("hybrid: meshes x layouts x masks, grouped heads, uneven shards") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(static_cast<unsigned>(seed));
  const auto roll = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  const int meshes[][2] = {{1, 1}, {1, 4}, {2, 1}, {2, 2}, {2, 3}, {4, 2}};
  for (const char* name : {"causal", "sliding_window:9", "document_causal"}) {
    for (const auto& [inside, outside] : meshes) {
      for (const char* layout : layouts) {
        CAPTURE(name);
        CAPTURE(inside);
        CAPTURE(outside);
        CAPTURE(layout);
        const int kv_heads = roll(2) ? inside : inside > 2 ? inside / 2 : 1;
        const int tokens = 30 + roll(60);
        const case_sizes s{{1 + roll(2), 2 * inside, kv_heads, 5 + roll(8), 6}, tokens, tokens};
        examples::mask_library library{
            {static_cast<int>(s.shape.batch), static_cast<int>(s.shape.q_heads), tokens, tokens}};
        const auto mask = library(name);
        const whole_inputs<> in{random(), s, roll(2) == 0};
        const any_layout outer{layout, tokens, outside};
        const auto got = run_hybrid(in, outer, outer, inside, mask, {}, {.tile = {16, 8}});
        CHECK(largest_error(got, reference_results_of(in, mask)) < 4e-5);
      }
    }
  }
}

// As for the other drivers, and with a fixed seed for the same reason.
TEST_CASE("ulysses and hybrid: the bar, 2e-6 between split and local results at 1024 tokens") {
  constexpr std::uint64_t seed = 2;
  for (const char* name : {"causal", "sliding_window:200"}) {
    for (int ranks : {1, 2, 3, 4, 7, 8}) {
      const whole_inputs<> in{seed, {{1, ranks, ranks, 32, 32}, 1024, 1024}};
      examples::mask_library library{{1, ranks, 1024, 1024}};
      const auto mask = library(name);
      const auto local = local_results<float, float>(in, mask);
      for (const char* layout : layouts) {
        CAPTURE(name);
        CAPTURE(ranks);
        CAPTURE(layout);
        const auto got = run_ulysses(in, {any_layout{layout, 1024, ranks}}, mask);
        CHECK(largest_error(got, local) < 2e-6);
        if (ranks % 2 != 0) continue;
        const any_layout outer{layout, 1024, ranks / 2};
        CHECK(largest_error(run_hybrid(in, outer, outer, 2, mask), local) < 2e-6);
      }
    }
  }
}

TEST_CASE("ulysses and hybrid: different lengths of queries and keys, more ranks than tokens") {
  const int lengths[][2] = {{40, 17}, {1, 30}, {3, 3}, {0, 20}, {20, 0}};
  std::uint64_t seed = 11;
  for (const auto& [q_len, kv_len] : lengths) {
    CAPTURE(q_len);
    CAPTURE(kv_len);
    const case_sizes s{{2, 4, 2, 6, 9}, q_len, kv_len};
    examples::mask_library library{{2, 4, q_len, kv_len}};
    const auto mask = library("sliding_window:3");
    const whole_inputs<> in{++seed, s, true};
    const auto expected = reference_results_of(in, mask);
    const auto a = run_ulysses(
        in, {any_layout{"striped", q_len, 4}, any_layout{"contiguous", kv_len, 4}}, mask);
    CHECK(largest_error(a, expected) < 1e-5);
    const auto b =
        run_hybrid(in, any_layout{"zigzag", q_len, 3}, any_layout{"striped", kv_len, 3}, 2, mask);
    CHECK(largest_error(b, expected) < 1e-5);
  }
}

TEST_CASE_TEMPLATE("ulysses and hybrid: 16-bit elements round once", T, float16, bfloat16) {
  const case_sizes s{{1, 4, 2, 16, 16}, 200, 200};
  const whole_inputs<T> in{17, s, true};
  const double ulp = std::is_same_v<T, float16> ? 0x1p-11 : 0x1p-8;
  const auto local = local_results<T, T>(in, mask::causal{});
  const auto exact = reference_results_of(in, mask::causal{});
  const auto check = [&](const auto& got) {
    CHECK(max_error(got.out, exact.out) <= max_error(local.out, exact.out) * 1.05 + 1e-6);
    CHECK(max_error(got.dq, exact.dq) <= max_error(local.dq, exact.dq) * 1.05 + ulp);
    CHECK(max_error(got.dk, exact.dk) <= max_error(local.dk, exact.dk) * 1.05 + ulp);
    CHECK(max_error(got.dv, exact.dv) <= max_error(local.dv, exact.dv) * 1.05 + ulp);
  };
  for (int ranks : {1, 2, 4}) { // with 4 ranks two share each key head
    CAPTURE(ranks);
    check(run_ulysses<T, T>(in, {any_layout{"zigzag", 200, ranks}}, mask::causal{}));
  }
  const any_layout outer{"zigzag", 200, 2};
  check(run_hybrid<T, T>(in, outer, outer, 4, mask::causal{}));
}

TEST_CASE("ulysses and hybrid: accumulate adds, repeated calls give the same bits") {
  const case_sizes s{{2, 4, 2, 8, 8}, 50, 50};
  const whole_inputs<> in{23, s, true};
  const any_layout outer{"zigzag", 50, 2};
  const auto once = run_ulysses(in, {any_layout{"zigzag", 50, 4}}, mask::causal{});
  const auto again = run_ulysses(in, {any_layout{"zigzag", 50, 4}}, mask::causal{}, {}, {}, 3);
  CHECK(largest_error(once, again) == 0);
  const auto mesh_once = run_hybrid(in, outer, outer, 2, mask::causal{});
  const auto mesh_again = run_hybrid(in, outer, outer, 2, mask::causal{}, {}, {}, 3);
  CHECK(largest_error(mesh_once, mesh_again) == 0);
  // split_results begins with gradients of 0: three passes add up to three times the gradients.
  options adding;
  adding.accumulate = true;
  const auto check = [](const auto& thrice, const auto& single) {
    double worst = 0;
    for_each_index((*single.dk).extents, [&](auto... i) {
      worst = std::max(worst, std::abs(double{thrice.dk(i...)} - 3.0 * single.dk(i...)));
    });
    for_each_index((*single.dq).extents, [&](auto... i) {
      worst = std::max(worst, std::abs(double{thrice.dq(i...)} - 3.0 * single.dq(i...)));
    });
    for (index_t h = 0; h < single.dsink.extent(0); ++h) {
      worst = std::max(worst, std::abs(double{thrice.dsink(h)} - 3.0 * single.dsink(h)));
    }
    CHECK(worst < 1e-5);
  };
  check(run_ulysses(in, {any_layout{"zigzag", 50, 4}}, mask::causal{}, {}, adding, 3), once);
  check(run_hybrid(in, outer, outer, 2, mask::causal{}, {}, adding, 3), mesh_once);
}

TEST_CASE("ulysses and hybrid: continue from an earlier call's state") {
  const case_sizes s{{1, 4, 2, 8, 8}, 48, 48};
  const whole_inputs<> first{31, s}, second{32, s};
  // The keys of both halves seen at once.
  case_sizes both = s;
  both.kv_len = 96;
  whole_inputs<> joined{31, both};
  joined.q = first.q;
  for_each_index((*first.k).extents, [&](auto b, auto h, auto i, auto d) {
    joined.k(b, h, i, d) = first.k(b, h, i, d);
    joined.v(b, h, i, d) = first.v(b, h, i, d);
    joined.k(b, h, i + 48, d) = second.k(b, h, i, d);
    joined.v(b, h, i + 48, d) = second.v(b, h, i, d);
  });
  const auto expected = reference_forward(inputs{*joined.q, *joined.k, *joined.v}, mask::full{});
  const auto check = [&](const auto& split, auto make) {
    comm::run_ranks(4, [&](threads& c) {
      const int r = c.rank();
      const auto q = shard_of(first.q, split, r);
      tensor<float, 4> out{{1, 4, split.size(r), 8}};
      tensor<float, 3> lse{{1, 4, split.size(r)}};
      auto driver = make(c);
      for (const whole_inputs<>* part : {&first, &second}) {
        const auto k = shard_of(part->k, split, r), v = shard_of(part->v, split, r);
        auto given = inputs{*q, *k, *v};
        if (part == &second) given.previous = {*out, *lse};
        driver.forward(host{1}, given, results{*out, *lse});
      }
      const auto want = shard_of(expected.out, split, r);
      CHECK(max_error(out, want) < 1e-5);
    });
  };
  const any_layout flat{"striped", 48, 4};
  check(flat, [&](threads& c) { return cp::ulysses{c, s.shape, flat, mask::full{}}; });
  const shard::subdivided mesh{any_layout{"zigzag", 48, 2}, 2};
  check(mesh, [&](threads& c) { return cp::hybrid{c, s.shape, mesh, mask::full{}}; });
}

TEST_CASE("ulysses and hybrid: heads that cannot be shared out are refused on every rank") {
  CHECK(contains(refusal(4, {1, 6, 6, 8, 8}), "cp::ulysses: q_heads is 6, expected a multiple of "
                                              "the 4 ranks that share the heads"));
  CHECK(contains(refusal(4, {1, 12, 6, 8, 8}), "kv_heads is 6, expected a multiple or a divisor"));
  CHECK(contains(refusal(6, {1, 12, 4, 8, 8}), "kv_heads is 4"));
  CHECK(refusal(4, {1, 8, 2, 8, 8}) == "no error");
  CHECK(contains(refusal(4, {1, 3, 3, 8, 8}, 2), "cp::hybrid: q_heads is 3"));
  CHECK(refusal(4, {1, 2, 1, 8, 8}, 2) == "no error");
}

TEST_CASE("split: parts of a communicator of threads") {
  comm::run_ranks(6, [](threads& c) {
    auto row = comm::split(c, c.rank() / 3, c.rank());
    auto column = comm::split(c, c.rank() % 3, -c.rank());
    CHECK(row.size() == 3);
    CHECK(row.rank() == c.rank() % 3);
    CHECK(column.size() == 2);
    CHECK(column.rank() == 1 - c.rank() / 3);
    auto pair = comm::split(row, row.rank() == 0 ? 0 : 1, 0);
    CHECK(pair.size() == (c.rank() % 3 == 0 ? 1 : 2));
    const int mine = c.rank();
    const auto bytes = row.share(std::as_bytes(std::span{&mine, 1}));
    int first = -1;
    std::memcpy(&first, bytes.data(), sizeof(first));
    CHECK(first == c.rank() / 3 * 3);
  });
}
