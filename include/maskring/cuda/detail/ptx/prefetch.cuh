// SPDX-License-Identifier: Apache-2.0
// Bringing memory into the L2 cache ahead of its use (sm_90).
#pragma once

namespace maskring::cuda::detail::ptx {

/// `bytes`, a multiple of 16, from a 16-byte aligned address on.
__device__ inline void prefetch_to_l2(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

} // namespace maskring::cuda::detail::ptx
