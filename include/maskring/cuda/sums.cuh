// SPDX-License-Identifier: Apache-2.0
// Where backward passes on the device add up what score modifiers learn.
#pragma once

#include <maskring/cuda/detail/block_map/buffer.cuh>
#include <maskring/score/exact_sum.hpp>

#include <vector>

namespace maskring::cuda {

/// Exact sums in device memory, freed in the order of the stream they were made on.
///
/// ```cpp
/// cuda::device_table values{exec, table};
/// cuda::device_table buckets{exec, distances};
/// cuda::device_sums gradient{exec, heads * bucket_count};
/// score::bias modifier{values.view().with_gradient(gradient.data()), buckets.view()};
/// ```
class device_sums {
public:
  /// So many sums, all 0. @throws cuda::error.
  template <class Executor>
  device_sums(const Executor& exec, index_t count)
      : memory_{exec.stream(), static_cast<std::size_t>(count) * sizeof(score::exact_sum)} {
    clear(exec);
  }

  score::exact_sum* data() const { return memory_.at<score::exact_sum>(0); }

  /// Makes all sums 0 again, behind the work queued before.
  template <class Executor>
  void clear(const Executor& exec) {
    detail::require_cuda(cudaMemsetAsync(data(), 0, memory_.bytes(), exec.stream()),
                         "cudaMemsetAsync of sums");
  }

  /// What has been added up, copied to the host; waits for the stream.
  template <class Executor>
  std::vector<double> read(const Executor& exec) const {
    std::vector<score::exact_sum> sums(memory_.bytes() / sizeof(score::exact_sum));
    detail::require_cuda(cudaMemcpyAsync(sums.data(), data(), memory_.bytes(),
                                         cudaMemcpyDeviceToHost, exec.stream()),
                         "cudaMemcpyAsync of sums");
    detail::require_cuda(cudaStreamSynchronize(exec.stream()), "cudaStreamSynchronize");
    std::vector<double> values;
    for (const score::exact_sum& sum : sums) values.push_back(sum.value());
    return values;
  }

private:
  detail::device_buffer memory_;
};

} // namespace maskring::cuda
