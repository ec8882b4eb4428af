// SPDX-License-Identifier: Apache-2.0
// Sums of equal parts, in their order.
#pragma once

#include <maskring/comm/detail/device_objects.cuh>
#include <maskring/core/range.hpp>

namespace maskring::comm::detail {

template <class = void> // a template, so that the kernel may be in several translation units
__global__ void sum_parts_kernel(const float* parts, int count_of_parts, index_t count, float* to) {
  const index_t stride = index_t{gridDim.x} * blockDim.x;
  for (index_t i = index_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    float sum = 0;
    for (int p = 0; p < count_of_parts; ++p) sum += parts[p * count + i];
    to[i] = sum;
  }
}

/// to[i] = Σ parts[p·count + i], p ascending.
inline void sum_parts(const float* parts, int count_of_parts, index_t count, float* to,
                      cudaStream_t stream) {
  if (count == 0) return;
  constexpr int threads = 256, most_blocks = 4096;
  const auto blocks = static_cast<int>(min((count + threads - 1) / threads, index_t{most_blocks}));
  sum_parts_kernel<><<<blocks, threads, 0, stream>>>(parts, count_of_parts, count, to);
  require_cuda(cudaGetLastError(), "launch of sum_parts_kernel");
}

} // namespace maskring::comm::detail
