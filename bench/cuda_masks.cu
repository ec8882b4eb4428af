// SPDX-License-Identifier: Apache-2.0
// Times attention under masks and score modifiers on the GPU, forward and backward, head dim 128.
// usage: bench_cuda_masks [--json FILE] [--kernel automatic|portable|hopper] [--deterministic 0|1]

#include "support/attention.cuh"

#include <maskring/cuda/sums.cuh>
#include <maskring/cuda/tables.cuh>
#include <maskring/mask/basic.hpp>
#include <maskring/mask/block_diffusion.hpp>
#include <maskring/mask/compose.hpp>
#include <maskring/mask/document.hpp>
#include <maskring/score/bias.hpp>
#include <maskring/score/position.hpp>
#include <maskring/score/softcap.hpp>

#include <cstdio>
#include <exception>
#include <vector>

namespace mr = maskring;

int main(int count, char** arguments) try {
  bench::device_timer timer;
  const mr::cuda::policy policy = bench::policy_argument(count, arguments);
  bench::report report{bench::device_name(), bench::argument(count, arguments, "json", "")};
  bench::attention_bench<__nv_bfloat16, 128> b{report, timer, policy};
  constexpr int tokens = 32'768;
  const bench::attention_size large{1, 16, 16, tokens}, medium{1, 16, 16, 16'384};

  b.run("causal", mr::mask::causal{}, medium); // what the rates of the others are compared with
  b.run("window 1024", mr::mask::sliding_window{1024}, large);

  std::vector<int> lengths(tokens / 1789, 1789);
  lengths.push_back(tokens % 1789);
  const auto docs = mr::mask::document_table::from_lengths(lengths);
  const mr::cuda::device_table table{timer, docs};
  b.run_table("documents 1789, causal", mr::mask::document{table.view(), mr::mask::causal{}},
              mr::mask::document{docs.view(), mr::mask::causal{}}, large);

  b.run("prefix 4096", mr::mask::prefix_lm{4096}, medium);
  b.run("diffusion 8192 32", mr::mask::block_diffusion{8192, 32}, medium);
  b.run("window 1024 or prefix 4096", mr::mask::sliding_window{1024} | mr::mask::prefix_lm{4096},
        medium);
  b.run("causal", mr::mask::causal{}, medium, "softcap 30", mr::score::softcap{30});
  b.run("causal", mr::mask::causal{}, medium, "alibi", mr::score::alibi{16});

  const auto distances = mr::score::distance_buckets::t5(32, 128, false);
  const mr::score::bias_table biases{std::vector<float>(16 * 32, 0.5f), 16, 32};
  const mr::cuda::device_table buckets{timer, distances};
  const mr::cuda::device_table values{timer, biases};
  const mr::cuda::device_sums sums{timer, 16 * 32};
  const mr::score::bias read{values.view(), buckets.view()};
  b.run("causal", mr::mask::causal{}, medium, "t5 bias", read);
  const mr::score::bias learned{values.view().with_gradient(sums.data()), buckets.view()};
  b.run("causal", mr::mask::causal{}, medium, "t5 bias, learned", learned);
} catch (const std::exception& failure) {
  std::fprintf(stderr, "%s\n", failure.what());
  return 1;
}
