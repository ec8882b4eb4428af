// SPDX-License-Identifier: Apache-2.0
// Whether this program holds code for sm_90a, which Hopper's own instructions need.
#pragma once

#include <cuda_runtime_api.h>

#include <initializer_list>

namespace maskring::cuda::detail::sm90 {

/// Whether any of the architectures compiled for can be sm_90a. If not, no Hopper kernel is
/// compiled.
#ifdef __CUDA_ARCH_LIST__
inline constexpr bool may_target_hopper = [] {
  for (const int arch : {__CUDA_ARCH_LIST__}) {
    if (arch == 900) return true;
  }
  return false;
}();
#else
inline constexpr bool may_target_hopper = true;
#endif

/// Tells sm_90 from sm_90a by its shared memory; never launched.
template <int Bytes>
__global__ void target_probe(int* out) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __shared__ int mark[Bytes / 4];
  mark[threadIdx.x] = out[0];
  __syncthreads();
  out[1] = mark[threadIdx.x ^ 1];
#endif
}

/// Whether the code that the current device would run was compiled for sm_90a.
inline bool compiled_for_hopper() {
  constexpr int bytes = 1024;
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, &target_probe<bytes>) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  return attributes.sharedSizeBytes >= bytes;
}

} // namespace maskring::cuda::detail::sm90
