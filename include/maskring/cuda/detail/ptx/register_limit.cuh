// SPDX-License-Identifier: Apache-2.0
// Moving registers between the warpgroups of a block (sm_90a).
//
// Takes effect only in a kernel with a register cap at entry, and with each warpgroup's role in one
// branch; otherwise the assembler ignores it with warning C7508.
#pragma once

namespace maskring::cuda::detail::ptx {

/// Gives this warpgroup's registers above `Count` a thread back to the block.
template <int Count>
__device__ inline void release_registers() {
  static_assert(Count >= 24 && Count <= 256 && Count % 8 == 0);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}

/// Waits until the block has enough spare registers and takes `Count` a thread.
template <int Count>
__device__ inline void acquire_registers() {
  static_assert(Count >= 24 && Count <= 256 && Count % 8 == 0);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}

} // namespace maskring::cuda::detail::ptx
