// SPDX-License-Identifier: Apache-2.0
// Gradients of what score modifiers and sinks learn, against finite differences in double
// precision.
#include "score/learning.hpp"

#include <maskring/cp/sum.hpp>
#include <maskring/mask/basic.hpp>
#include <maskring/score/bias.hpp>
#include <maskring/score/compose.hpp>
#include <maskring/score/rotary_part.hpp>
#include <maskring/score/softcap.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <functional>

using namespace maskring;
using namespace maskring::testing;

namespace {

const case_sizes sizes{{.batch = 2, .q_heads = 4, .kv_heads = 2, .qk_dim = 8, .v_dim = 5}, 37, 37};

// Σ dout·out + Σ dlse·lse in double precision.
template <class Mask, class Score>
double loss(const whole_inputs<float>& in, const Mask& mask, const Score& score) {
  const auto fwd = reference_forward(inputs_of(in), mask, score);
  double sum = 0;
  for_each_index((*fwd.out).extents,
                 [&](auto... i) { sum += fwd.out(i...) * double{in.dout(i...)}; });
  for_each_index((*fwd.lse).extents, [&](auto... i) {
    if (std::isfinite(fwd.lse(i...))) sum += fwd.lse(i...) * double{in.dlse(i...)};
  });
  return sum;
}

// The central difference of `f` in one of the numbers that it reads.
template <class F>
double difference(float& x, F f) {
  const float before = x;
  x = before + 0x1p-9f;
  const double high = x, above = f();
  x = before - 0x1p-9f;
  const double low = x, below = f();
  x = before;
  return (above - below) / (high - low);
}

template <class Make>
void check_bias(score::bias_table& table, Make make) {
  const whole_inputs<float> in{5, sizes};
  const mask::prefix_lm mask{9};
  table.clear_gradient();
  hand_gradients(in, mask, make(table.learning()));
  const std::vector<double> expected = table.gradient();
  double worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double slope =
        difference(table.values()[i], [&] { return loss(in, mask, make(table.view())); });
    worst = std::max(worst, std::abs(slope - expected[i]));
  }
  CHECK(worst < 2e-5);

  table.clear_gradient();
  const auto modifier = make(table.learning());
  local_results<float, float>(in, mask, modifier);
  CHECK(gradient_error(table.gradient(), expected) < 1e-5);
}

} // namespace

TEST_CASE("the table of a bias learns") {
  const auto buckets = score::distance_buckets::t5(8, 20, true);
  score::bias_table by_head{small_numbers(32), 4, 8}, shared{small_numbers(8), 1, 8};
  const auto plain = [&](const score::bias_view& view) {
    return score::bias{view, buckets.view()};
  };
  check_bias(by_head, plain);
  check_bias(shared, plain);
}

TEST_CASE("a table learns through what comes after it, and after what comes before") {
  const auto buckets = score::distance_buckets::clipped(3);
  score::bias_table table{small_numbers(28), 4, 7};
  check_bias(table, [&](const score::bias_view& view) {
    return score::softcap{3} >> score::bias{view, buckets.view()} >> score::softcap{0.7f};
  });
}

TEST_CASE("what a table learns is the same bits each time, whatever the number of threads") {
  const case_sizes large{
      {.batch = 2, .q_heads = 4, .kv_heads = 2, .qk_dim = 16, .v_dim = 16}, 700, 700};
  const whole_inputs<float> in{11, large};
  const auto buckets = score::distance_buckets::t5(8, 200, true);
  score::bias_table table{small_numbers(8), 1, 8}; // shared by all heads: all threads add to it
  const auto learned = [&](int threads) {
    const score::bias modifier{table.learning(), buckets.view()};
    whole_results<float, float> r{large};
    const host exec{threads};
    forward(exec, inputs_of(in), results{*r.out, *r.lse}, mask::causal{}, modifier);
    table.clear_gradient();
    backward(exec, saved{*in.q, *in.k, *in.v, *r.out, *r.lse}, upstream{*in.dout},
             gradients{*r.dq, *r.dk, *r.dv}, mask::causal{}, modifier);
    return table.gradient();
  };
  const std::vector<double> once = learned(1);
  CHECK(std::any_of(once.begin(), once.end(), [](double x) { return x != 0; }));
  for (int threads : {1, 2, 3, 8}) CHECK(learned(threads) == once);
}

TEST_CASE("rotated queries and keys learn") {
  whole_inputs<float> in{6, sizes};
  const mask::causal mask;
  std::mt19937_64 random{7};
  auto q = random_tensor<float, 4>(random, {2, 4, 37, 2}),
       k = random_tensor<float, 4>(random, {2, 2, 37, 2});
  tensor<score::exact_sum, 4> dq{{2, 4, 37, 2}}, dk{{2, 2, 37, 2}};
  const auto modifier = [&] { return score::rotary_part{*q, *k, 0.4f}; };
  hand_gradients(in, mask, modifier().with_gradient(*dq, *dk));
  for (auto [b, h, i, d] : {std::array<int, 4>{0, 1, 30, 0}, {1, 3, 5, 1}, {1, 0, 36, 1}}) {
    const double slope = difference(q(b, h, i, d), [&] { return loss(in, mask, modifier()); });
    CHECK(slope == doctest::Approx(dq(b, h, i, d).value()).epsilon(1e-5));
  }
  for (auto [b, h, i, d] : {std::array<int, 4>{0, 1, 3, 0}, {1, 0, 0, 1}, {1, 1, 20, 1}}) {
    const double slope = difference(k(b, h, i, d), [&] { return loss(in, mask, modifier()); });
    CHECK(slope == doctest::Approx(dk(b, h, i, d).value()).epsilon(1e-5));
  }
  tensor<score::exact_sum, 4> host_dq{{2, 4, 37, 2}}, host_dk{{2, 2, 37, 2}};
  local_results<float, float>(in, mask, modifier().with_gradient(*host_dq, *host_dk));
  CHECK(gradient_error(values_of(host_dq), values_of(dq)) < 1e-5);
  CHECK(gradient_error(values_of(host_dk), values_of(dk)) < 1e-5);
}

TEST_CASE("sink logits learn") {
  whole_inputs<float> in{8, sizes, true};
  const mask::sliding_window mask{6};
  const auto r = local_results<float, float>(in, mask, score::softcap{5});
  for (index_t h = 0; h < 4; ++h) {
    const double slope = difference(in.sink(h), [&] { return loss(in, mask, score::softcap{5}); });
    CHECK(slope == doctest::Approx(r.dsink(h)).epsilon(1e-4));
  }
}

TEST_CASE("under context parallelism the ranks' parts of a table's gradient add up to the whole") {
  const auto buckets = score::distance_buckets::t5(8, 20, false);
  const auto values = small_numbers(32);
  const whole_inputs<float> in{9, sizes, true};
  const mask::sliding_window mask{25};
  score::bias_table whole{values, 4, 8};
  const auto expected =
      local_results<float, float>(in, mask, score::bias{whole.learning(), buckets.view()});
  const auto check = [&]<class Layout>(const Layout& layout) {
    const cp::shards<Layout, Layout> split{layout, layout};
    std::vector<score::bias_table> tables(3, whole);
    for (auto& table : tables) table.clear_gradient();
    const auto got = split_results<float, float>(in, split, [&](auto& comm) {
      auto& table = tables[static_cast<std::size_t>(comm.rank())];
      return cp::ring{comm, sizes.shape, split, mask,
                      score::bias{table.learning(), buckets.view()}};
    });
    CHECK(largest_error(got, expected) < 1e-5);
    std::vector<std::vector<double>> sums(3);
    comm::run_ranks(3, [&](comm::threads& comm) {
      const auto rank = static_cast<std::size_t>(comm.rank());
      sums[rank] = tables[rank].gradient();
      cp::sum_over_ranks(comm, std::span{sums[rank]});
    });
    for (const auto& sum : sums) {
      CHECK(gradient_error(sum, whole.gradient()) < 1e-5);
      CHECK(sum == sums[0]);
    }
  };
  check(shard::contiguous{37, 3});
  check(shard::zigzag{37, 3});
  check(shard::striped{37, 3});
}
