// SPDX-License-Identifier: Apache-2.0
// 2^x on the special function unit.
#pragma once

namespace maskring::cuda::detail::ptx {

/// 2^x with a relative error near 2^-22; results below 2^-126 become 0, exp2(−inf) is 0.
__device__ inline float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

} // namespace maskring::cuda::detail::ptx
