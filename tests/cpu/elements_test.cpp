// SPDX-License-Identifier: Apache-2.0
// Element types and score modifiers: each combination is a set of kernels of its own.
#include "attention_cases.hpp"

namespace {

using namespace maskring;
using namespace maskring::testing;

template <class T, class O, class G, class Score>
void check_random_cases(std::uint64_t seed, int count) {
  CAPTURE(seed);
  std::mt19937_64 random{seed};
  for (int i = 0; i < count; ++i) {
    CAPTURE(i);
    attention_case c = random_case(random);
    c.accumulate = std::is_same_v<G, float> && random() % 3 == 0;
    check_case<T, O, G, Score>(c, random);
  }
}

} // namespace

TEST_CASE("host attention with a score modifier") {
  check_random_cases<float, float, float, bent>(31, 60);
}

TEST_CASE("host attention in half precision") {
  check_random_cases<float16, float16, float16, score::none>(32, 40);
}

TEST_CASE("host attention in bfloat16, with results in float") {
  check_random_cases<bfloat16, float, float, bent>(33, 40);
}
