// SPDX-License-Identifier: Apache-2.0
// A mask that can be asked about elements only, on the device: one rank, and several by each
// driver.
#include "../cp/device_problems.cuh"

using namespace maskring;
using namespace maskring::testing;

namespace {

/// As its author may write it: branches and loops on plain ints.
struct of_ints_only {
  constexpr bool operator()(int b, int h, int q, int kv) const {
    if (q < kv) return false;
    int low = q + b, other = kv;
    while (low % 2 == 0 && low > 0) low /= 2, other /= 2;
    return h == 0 || other % 3 != 0;
  }
};
static_assert(!classifiable_mask<of_ints_only>);

} // namespace

TEST_CASE("a mask of ints only, on the device and over its ranks") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  const case_sizes sizes{
      {.batch = 2, .q_heads = 4, .kv_heads = 4, .qk_dim = 24, .v_dim = 40}, 301, 301};
  const whole_inputs<float> in{seed, sizes, true};
  const of_ints_only mask{};
  const auto exact = reference_results_of(in, mask);
  const auto single = device_results<float, float>(in, mask);
  CHECK(relative_error(single.out, exact.out) < 1e-5);
  CHECK(relative_error(single.dq, exact.dq) < 1e-5);
  CHECK(relative_error(single.dk, exact.dk) < 1e-5);
  CHECK(relative_error(single.dv, exact.dv) < 1e-5);
  for (const method how : {method::ring, method::all_gather, method::ulysses, method::hybrid}) {
    CAPTURE(std::string{name_of(how)});
    const any_layout split{"zigzag", 301, how == method::hybrid ? 2 : 4};
    check_as_good(run_on_device<float, float>(how, in, split, split, mask), single, exact, 1e-6);
  }
}
