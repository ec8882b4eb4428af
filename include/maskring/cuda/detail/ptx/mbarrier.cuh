// SPDX-License-Identifier: Apache-2.0
// Waiting on a shared-memory barrier's phase; cuda::ptx has the single try.
#pragma once

#include <cuda/ptx>

#include <cstdint>

namespace maskring::cuda::detail::ptx {

/// Blocks until the phase of the given parity has completed.
__device__ inline void wait(std::uint64_t& barrier, std::uint32_t parity) {
  while (!::cuda::ptx::mbarrier_try_wait_parity(&barrier, parity)) {
  }
}

/// Whether the phase of the given parity has completed.
__device__ inline bool completed(std::uint64_t& barrier, std::uint32_t parity) {
  return ::cuda::ptx::mbarrier_test_wait_parity(&barrier, parity);
}

__device__ inline void arrive(std::uint64_t& barrier) { ::cuda::ptx::mbarrier_arrive(&barrier); }

/// Arrives, and adds `bytes` to what the copy engine must deliver before the phase completes.
__device__ inline void arrive_expecting(std::uint64_t& barrier, std::uint32_t bytes) {
  ::cuda::ptx::mbarrier_arrive_expect_tx(::cuda::ptx::sem_release, ::cuda::ptx::scope_cta,
                                         ::cuda::ptx::space_shared, &barrier, bytes);
}

} // namespace maskring::cuda::detail::ptx
