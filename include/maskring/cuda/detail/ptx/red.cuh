// SPDX-License-Identifier: Apache-2.0
// Additions to device memory that return nothing.
#pragma once

namespace maskring::cuda::detail::ptx {

/// Adds four floats to 16 aligned bytes of device memory, each addition by itself atomic.
__device__ inline void add_to_global(float* at, const float* value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(at), "f"(value[0]),
               "f"(value[1]), "f"(value[2]), "f"(value[3])
               : "memory");
#else
  for (int i = 0; i < 4; ++i) atomicAdd(at + i, value[i]);
#endif
}

/// Adds two floats to 8 aligned bytes.
__device__ inline void add_pair_to_global(float* at, float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(at), "f"(first), "f"(second)
               : "memory");
#else
  atomicAdd(at, first);
  atomicAdd(at + 1, second);
#endif
}

} // namespace maskring::cuda::detail::ptx
