// SPDX-License-Identifier: Apache-2.0
#include "attention_cases.hpp"

#include <maskring/mask/basic.hpp>
#include <maskring/shard/rewrite.hpp>

#include <thread>

namespace {

using namespace maskring;
using namespace maskring::testing;

} // namespace

TEST_CASE("host attention agrees with the reference on random problems") {
  constexpr std::uint64_t seed = 2024;
  CAPTURE(seed);
  std::mt19937_64 random{seed};
  for (int i = 0; i < 150; ++i) {
    CAPTURE(i);
    attention_case c = random_case(random);
    c.accumulate = random() % 3 == 0;
    check_case<float, float, float, score::none>(c, random);
  }
}

TEST_CASE("host attention agrees with the reference for every mask and instruction set") {
  std::mt19937_64 random{5};
  for (int mask = 0; mask < case_mask::kinds; ++mask) {
    for (int level = 0; level <= static_cast<int>(cpu::best_isa()); ++level) {
      attention_case c;
      c.q_heads = 2;
      c.q_len = 270;
      c.kv_len = 290;
      c.qk_dim = 64;
      c.v_dim = 48;
      c.mask = static_cast<case_mask::kind>(mask);
      c.level = static_cast<cpu::isa>(level);
      c.threads = 2;
      check_case<float, float, float, score::none>(c, random);
    }
  }
}

TEST_CASE("host attention takes empty tensors") {
  std::mt19937_64 random{6};
  for (index_t q_len : {0, 1, 5}) {
    for (index_t kv_len : {0, 1, 5}) {
      for (index_t batch : {0, 1}) {
        attention_case c;
        c.batch = batch;
        c.q_len = q_len;
        c.kv_len = kv_len;
        for (bool option : {false, true}) {
          c.carried = c.sink = c.dlse = option;
          check_case<float, float, float, score::none>(c, random);
        }
      }
    }
  }
}

TEST_CASE("host attention gives the same bits for any number of threads") {
  std::mt19937_64 random{7};
  const index_t length = 700;
  const auto q = random_tensor<float, 4>(random, {1, 2, length, 32});
  const auto k = random_tensor<float, 4>(random, {1, 1, length, 32});
  const auto v = random_tensor<float, 4>(random, {1, 1, length, 32});
  const auto dout = random_tensor<float, 4>(random, {1, 2, length, 32});
  std::vector<float> first[5];
  for (int threads : {1, 2, 5}) {
    tensor<float, 4> out{{1, 2, length, 32}}, dq{{1, 2, length, 32}};
    tensor<float, 4> dk{{1, 1, length, 32}}, dv{{1, 1, length, 32}};
    tensor<float, 3> lse{{1, 2, length}};
    forward(host{threads}, inputs{*q, *k, *v}, results{*out, *lse}, mask::causal{});
    backward(host{threads}, saved{*q, *k, *v, *out, *lse}, upstream{*dout},
             gradients{*dq, *dk, *dv}, mask::causal{});
    const std::vector<float>* now[] = {&out.storage(), &lse.storage(), &dq.storage(), &dk.storage(),
                                       &dv.storage()};
    for (int i = 0; i < 5; ++i) {
      if (threads == 1) first[i] = *now[i];
      CHECK(first[i] == *now[i]);
    }
  }
}

TEST_CASE("host attention may be called from several threads at once") {
  std::mt19937_64 random{8};
  const auto q = random_tensor<float, 4>(random, {1, 2, 300, 16});
  const auto once = [&] {
    tensor<float, 4> out{{1, 2, 300, 16}}, dq{{1, 2, 300, 16}};
    tensor<float, 4> dk{{1, 2, 300, 16}}, dv{{1, 2, 300, 16}};
    tensor<float, 3> lse{{1, 2, 300}};
    forward(host{3}, inputs{*q, *q, *q}, results{*out, *lse}, mask::causal{});
    backward(host{3}, saved{*q, *q, *q, *out, *lse}, upstream{*q}, gradients{*dq, *dk, *dv},
             mask::causal{});
    return dq.storage();
  };
  const auto expected = once();
  std::vector<float> got[4];
  {
    std::vector<std::jthread> callers;
    for (auto& result : got) callers.emplace_back([&] { result = once(); });
  }
  for (const auto& result : got) CHECK(result == expected);
}

TEST_CASE("host attention takes a block map that is there already, and leaves lse out") {
  std::mt19937_64 random{9};
  const auto q = random_tensor<float, 4>(random, {2, 2, 300, 16});
  tensor<float, 4> out{{2, 2, 300, 16}}, again{{2, 2, 300, 16}};
  const mask::causal causal;
  const block_map map = make_block_map(causal, {2, 2, 300, 300}, {64, 32});
  forward(host{}, inputs{*q, *q, *q}, results{*out}, causal, map);
  forward(host{}, inputs{*q, *q, *q}, results{*again}, causal, map.view(), score::none{},
          options{});
  CHECK(out.storage() == again.storage());
  CHECK(max_error(out, reference_forward(inputs{*q, *q, *q}, causal).out) < 2e-6);
}

TEST_CASE("a NaN shows in the rows that see it, and in no other") {
  std::mt19937_64 random{14};
  auto q = random_tensor<float, 4>(random, {1, 1, 100, 16});
  const auto k = random_tensor<float, 4>(random, {1, 1, 100, 16});
  q(0, 0, 70, 3) = std::nanf("");
  tensor<float, 4> out{{1, 1, 100, 16}};
  tensor<float, 3> lse{{1, 1, 100}};
  forward(host{}, inputs{*q, *k, *k}, results{*out, *lse}, mask::causal{});
  for (int i = 0; i < 100; ++i) {
    CHECK(std::isnan(out(0, 0, i, 0)) == (i == 70));
    CHECK(std::isnan(lse(0, 0, i)) == (i == 70));
  }
}

TEST_CASE("scores so large that floats have no fractions choose the largest") {
  tensor<float, 4> q{{1, 1, 3, 2}}, k{{1, 1, 70, 2}}, v{{1, 1, 70, 1}}, out{{1, 1, 3, 1}};
  for (int i = 0; i < 70; ++i) {
    v(0, 0, i, 0) = static_cast<float>(i);
    k(0, 0, i, 0) = 1e4f * static_cast<float>(i % 66);
  }
  for (int i = 0; i < 3; ++i) q(0, 0, i, 0) = i == 0 ? 1e3f : i == 1 ? -1e3f : 1e30f;
  forward(host{}, inputs{*q, *k, *v}, results{*out}, mask::full{});
  CHECK(out(0, 0, 0, 0) == 65);
  CHECK(out(0, 0, 1, 0) == 33); // keys 0 and 66
  CHECK(out(0, 0, 2, 0) == 65);
}

TEST_CASE("rows left open and carried on end with the bits of one call") {
  std::mt19937_64 random{15};
  constexpr index_t length = 200, half = 128;
  const auto q = random_tensor<bfloat16, 4>(random, {1, 2, length, 16});
  const auto k = random_tensor<bfloat16, 4>(random, {1, 2, length, 16});
  const auto v = random_tensor<bfloat16, 4>(random, {1, 2, length, 24});
  const auto sink = random_tensor<float, 1>(random, {2});
  tensor<bfloat16, 4> out{{1, 2, length, 24}}, expected = out;
  tensor<float, 4> state{{1, 2, length, 24}};
  tensor<float, 3> lse{{1, 2, length}}, expected_lse = lse, sum = lse;
  const mask::sliding_window mask{100};
  const auto later = shard::rewrite(mask, shard::offset_map{0}, shard::offset_map{half});
  forward(host{}, inputs{*q, *k, *v}.with_sink(*sink), results{*expected, *expected_lse}, mask);

  const auto part = [&](const auto& x, index_t first, index_t count) {
    return (*x).slice(2, first, count);
  };
  const block_map first = make_block_map(mask, {1, 2, length, half}, {});
  const block_map second = make_block_map(later, {1, 2, length, length - half}, {});
  forward(host{}, inputs{*q, part(k, 0, half), part(v, 0, half)}, results{*state, *lse}, mask,
          first.view(), score::none{}, options{}, {*sum, false, true});
  const auto rest = inputs{*q, part(k, half, length - half), part(v, half, length - half)};
  forward(host{}, rest.continuing({*state, *lse}).with_sink(*sink), results{*out, *lse}, later,
          second.view(), score::none{}, options{}, {*sum, true, false});
  CHECK(max_error(out, expected) == 0);
  CHECK(lse.storage() == expected_lse.storage());
}
