// SPDX-License-Identifier: Apache-2.0
// What score modifiers and sinks learn on the device, against double precision.
#include "device_learning.cuh"

#include <maskring/mask/compose.hpp>
#include <maskring/mask/window.hpp>

#include <bit>

using namespace maskring;
using namespace maskring::testing;

namespace {

const case_sizes sizes{
    {.batch = 2, .q_heads = 4, .kv_heads = 2, .qk_dim = 40, .v_dim = 24}, 150, 203};
// One type for all cases: each other one is a set of kernels to compile.
constexpr auto make_mask = [](int prefix, int width) {
  return mask::prefix_lm{prefix} & mask::attention_sink{width, 9};
};
const auto some_mask = make_mask(70, 120);

template <class T, class Learned>
void check_learning(Learned learned, std::uint64_t seed) {
  CAPTURE(seed);
  const whole_inputs<T> in{seed, sizes, true};
  const expected_gradient expected{in, some_mask, learned};
  const auto exact = reference_results_of(in, some_mask, learned.on_host());
  const typename Learned::device_copy copy{learned};
  const auto found = device_results<T, T>(in, some_mask, copy.modifier());
  expected.check(copy.gradient());
  for (index_t h = 0; h < sizes.shape.q_heads; ++h) {
    CHECK(double{found.dsink(h)} == doctest::Approx(exact.dsink(h)).epsilon(0.02).scale(1.0));
  }
}

__global__ void add_all(const float* terms, int count, score::exact_sum* sums, int sum_count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) sums[i % sum_count].add(terms[i]);
}

} // namespace

TEST_CASE("exact sums of floats of any size are the same on the device") {
  const unsigned seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random{seed};
  tensor<float, 1> terms{{100'001}};
  for (float& x : terms.storage()) {
    do x = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    while (!std::isfinite(x));
  }
  const on_device<float, 1> there{terms};
  for (const int count : {1, 3, 32, 1000}) {
    const maskring::cuda::device_sums sums{default_queue{}, count};
    add_all<<<1000, 128>>>((*there).data, 100'001, sums.data(), count);
    std::vector<score::exact_sum> expected(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < terms.storage().size(); ++i) {
      expected[i % expected.size()].add(terms.storage()[i]);
    }
    std::vector<double> values;
    for (const score::exact_sum& sum : expected) values.push_back(sum.value());
    CHECK(sums.read(default_queue{}) == values);
  }
}

TEST_CASE("a table for each head learns on the device") {
  const std::uint64_t seed = std::random_device{}();
  check_learning<bfloat16>(learned_bias{4}, seed);
  check_learning<float16>(learned_bias{4}, seed);
  check_learning<float>(learned_bias{4}, seed);
}

TEST_CASE("a table for all heads learns on the device") {
  const std::uint64_t seed = std::random_device{}();
  check_learning<bfloat16>(learned_bias{1}, seed);
  check_learning<float16>(learned_bias{1}, seed);
  check_learning<float>(learned_bias{1}, seed);
}

TEST_CASE("rotated queries and keys learn on the device") {
  const std::uint64_t seed = std::random_device{}();
  check_learning<bfloat16>(learned_rotary{sizes}, seed);
  check_learning<float>(learned_rotary{sizes}, seed);
}

TEST_CASE(
    "what is learned on the device, and all gradients beside it, are the same bits each time") {
  const case_sizes large{
      {.batch = 2, .q_heads = 4, .kv_heads = 2, .qk_dim = 64, .v_dim = 64}, 1500, 1500};
  const auto mask = make_mask(1500, 1500); // causal
  const learned_bias learned{1};           // one table: all blocks add to it
  const auto repeat = [&]<class T>(T) {
    const whole_inputs<T> in{17, large, true};
    learned_bias::device_copy copy{learned};
    std::vector<double> first_gradient;
    std::optional<whole_results<T, T>> first;
    for (int i = 0; i < 4; ++i) {
      copy.clear();
      const auto again = device_results<T, T>(in, mask, copy.modifier());
      const std::vector<double> gradient = copy.gradient();
      if (!first) {
        first = again;
        first_gradient = gradient;
        CHECK(std::any_of(gradient.begin(), gradient.end(), [](double x) { return x != 0; }));
      }
      CHECK(gradient == first_gradient);
      CHECK(max_error(again.dq, first->dq) == 0);
      CHECK(max_error(again.dk, first->dk) == 0);
      CHECK(max_error(again.dv, first->dv) == 0);
      CHECK(max_error(again.dsink, first->dsink) == 0);
    }
  };
  repeat(bfloat16{});
  repeat(float{});
}
