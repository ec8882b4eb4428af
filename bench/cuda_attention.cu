// SPDX-License-Identifier: Apache-2.0
// Times full and causal attention on the GPU, forward and backward, over head dimensions.
// usage: bench_cuda_attention [--json FILE] [--kernel automatic|portable|hopper] [--deterministic
// 0|1]

#include "support/attention.cuh"

#include <maskring/mask/basic.hpp>

#include <cstdio>
#include <exception>

namespace {

namespace mr = maskring;
using bench::attention_size;

template <int Dim>
void run_dim(bench::report& report, bench::device_timer& timer, const mr::cuda::policy& policy,
             std::initializer_list<attention_size> sizes) {
  bench::attention_bench<__nv_bfloat16, Dim> b{report, timer, policy};
  for (const attention_size& size : sizes) {
    b.run("full", mr::mask::full{}, size);
    b.run("causal", mr::mask::causal{}, size);
  }
}

} // namespace

int main(int count, char** arguments) try {
  bench::device_timer timer;
  const mr::cuda::policy policy = bench::policy_argument(count, arguments);
  bench::report report{bench::device_name(), bench::argument(count, arguments, "json", "")};
  run_dim<64>(report, timer, policy, {{1, 32, 32, 16'384}});
  run_dim<128>(report, timer, policy, {{4, 16, 16, 4'096}, {1, 16, 16, 16'384}});
  run_dim<256>(report, timer, policy, {{1, 8, 8, 8'192}});
} catch (const std::exception& failure) {
  std::fprintf(stderr, "%s\n", failure.what());
  return 1;
}
