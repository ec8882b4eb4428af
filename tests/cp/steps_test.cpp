// SPDX-License-Identifier: Apache-2.0
// Drivers over a backend whose backward calls add up dq among themselves, as those on devices do.
#include "../../examples/support/any_layout.hpp"
#include "../../examples/support/any_mask.hpp"
#include "problems.hpp"

#include <maskring/cp/hybrid.hpp>
#include <maskring/cp/ulysses.hpp>

#include <doctest/doctest.h>

namespace maskring::testing {

/// The host, with sums of dq that it keeps from a pass's first backward call to its last.
struct stepping_host : host {
  using host::host;
  std::shared_ptr<tensor<float, 4>> sums = std::make_shared<tensor<float, 4>>();
};

} // namespace maskring::testing

namespace maskring::cp {

template <>
struct backend<testing::stepping_host> : backend<host> {
  template <class T>
  static constexpr bool adds_up_dq = true;

  template <class T, class O, class D, class G, class Mask, class Score>
  static void backward_step(const testing::stepping_host& exec, const saved<T, O>& in,
                            const upstream<D>& up, const view<G, 4>& dq,
                            const gradients<float>& keys, const Mask& mask,
                            const block_map_view& map, const Score& score, const options& opt,
                            bool adds, bool first, bool last) {
    testing::tensor<float, 4>& sums = *exec.sums;
    if (first)
      sums = testing::tensor<float, 4>{{dq.extent(0), dq.extent(1), dq.extent(2), dq.extent(3)}};
    if (!adds) zero(exec, keys.dk), zero(exec, keys.dv);
    testing::tensor<float, 1> dsink{{in.q.extent(1)}};
    gradients<float> to{*sums, keys.dk, keys.dv};
    saved<T, O> now = in.with_sink({});
    if (last && keys.dsink) now.sink = in.sink, to.dsink = *dsink;
    options adding = opt;
    adding.accumulate = true;
    maskring::backward(static_cast<const host&>(exec), now, up, to, mask, map, score, adding);
    if (!last) return;
    if (opt.accumulate) {
      if constexpr (std::is_same_v<G, float>) add(exec, *sums, dq);
    } else {
      copy(exec, view<const float, 4>{*sums}, dq);
    }
    for (index_t h = 0; h < dsink.extent(0) && keys.dsink; ++h) {
      keys.dsink(h) = dsink(h) + (opt.accumulate ? keys.dsink(h) : 0.0f);
    }
  }
};

} // namespace maskring::cp

namespace {

using namespace maskring;
using namespace maskring::testing;
using examples::any_layout;

/// What each driver finds, of problems whose gradients have 16 bits.
template <class Mask, class Check>
void each_driver(const whole_inputs<bfloat16>& in, const cp::shards<any_layout, any_layout>& split,
                 const Mask& mask, Check check) {
  const cp::shape& s = in.sizes.shape;
  const auto run = [&](const char* name, const auto& shards, auto make) {
    CAPTURE(std::string{name});
    check(split_results<bfloat16, bfloat16, stepping_host>(in, shards, make));
  };
  run("ring", split, [&](comm::threads& c) {
    cp::ring driver{c, s, split, mask};
    driver.smallest_cut(1);
    return driver;
  });
  run("all-gather", split, [&](comm::threads& c) { return cp::all_gather{c, s, split, mask}; });
  run("ulysses", split, [&](comm::threads& c) { return cp::ulysses{c, s, split, mask}; });
  const cp::shards mesh{shard::subdivided{split.q, 2}, shard::subdivided{split.kv, 2}};
  run("hybrid", mesh, [&](comm::threads& c) { return cp::hybrid{c, s, mesh, mask}; });
}

} // namespace

TEST_CASE("backward calls that add up dq: all drivers, ranks without queries or keys, sinks") {
  const int lengths[][2] = {{40, 70}, {5, 70}, {1, 30}, {30, 1}, {0, 20}, {20, 0}, {0, 0}};
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937_64 random{seed};
  for (const auto& [q_len, kv_len] : lengths) {
    for (const char* name : {"sliding_window:9", "full"}) {
      for (const bool with_sink : {true, false}) {
        CAPTURE(q_len);
        CAPTURE(kv_len);
        CAPTURE(std::string{name});
        CAPTURE(with_sink);
        const case_sizes s{{2, 4, 4, 8, 8}, q_len, kv_len};
        examples::mask_library library{{2, 4, q_len, kv_len}};
        const auto mask = library(name);
        const whole_inputs<bfloat16> in{random(), s, with_sink};
        const auto exact = reference_results_of(in, mask);
        const auto local = local_results<bfloat16, bfloat16>(in, mask);
        const cp::shards<any_layout, any_layout> split{any_layout{"zigzag", q_len, 4},
                                                       any_layout{"striped", kv_len, 4}};
        // A sink's gradient is a sum of 40 terms in fp32, near 16: some units in its last place.
        constexpr double rounding = 1e-5;
        each_driver(in, split, mask, [&](const auto& got) {
          CHECK(largest_error(got, exact) <= 1.05 * largest_error(local, exact) + rounding);
        });
      }
    }
  }
}
