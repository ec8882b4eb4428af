// SPDX-License-Identifier: Apache-2.0
// One lane of a warp (sm_90), told by one instruction; its number, read from a special register,
// takes about a hundred cycles.
#pragma once

#include <cstdint>

namespace maskring::cuda::detail::ptx {

/// True for one lane, the same each time. All lanes of a warp together.
__device__ inline bool elected() {
  std::uint32_t is;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(is));
  return is != 0;
}

} // namespace maskring::cuda::detail::ptx
