// SPDX-License-Identifier: Apache-2.0
// The block's numbered barriers (0 is __syncthreads).
#pragma once

namespace maskring::cuda::detail::ptx {

/// Waits until `threads` threads in all have arrived at or wait on barrier `id`.
__device__ inline void barrier_sync(int id, int threads) {
  asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Arrives without waiting.
__device__ inline void barrier_arrive(int id, int threads) {
  asm volatile("barrier.cta.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

} // namespace maskring::cuda::detail::ptx
