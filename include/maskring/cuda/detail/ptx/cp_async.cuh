// SPDX-License-Identifier: Apache-2.0
// Asynchronous copies from device to shared memory by each thread (compute capability 8.0 and
// later).
#pragma once

#include <cstdint>

namespace maskring::cuda::detail::ptx {

/// Copies 16 bytes, or writes 16 zero bytes if not `valid`; both addresses are multiples of 16.
__device__ inline void copy_async(std::uint32_t shared, const void* global, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(bytes));
}

/// Copies 4 bytes; both addresses are multiples of 4.
__device__ inline void copy_async_word(std::uint32_t shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global));
}

/// Closes a group: the copies that this thread has started since the last one.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most `Pending` of this thread's groups are still under way.
template <int Pending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

} // namespace maskring::cuda::detail::ptx
