// SPDX-License-Identifier: Apache-2.0
// 2^x, on the special function unit and on the FMA units.
#pragma once

namespace maskring::cuda::detail::ptx {

/// 2^x with a relative error near 2^-22; results below 2^-126 become 0, exp2(−inf) is 0.
__device__ inline float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// 2^x for x < 128 with a relative error below 2^-13, enough where the result is rounded to 16 bits;
/// 0 for x ≤ −127.
///
/// 2^round(x) goes into the exponent, 2^(x − round(x)) is a polynomial of degree 3 whose constant
/// is exactly 1, so that the lowest x gives exactly 0.
__device__ inline float exp2_polynomial(float x) {
  constexpr float to_integer = 0x1.8p23f;  // adding it rounds to an integer in the low bits
  x = fmaxf(x, -127.0f);
  const float shifted = x + to_integer;
  const float f = x - (shifted - to_integer);
  float y = 0.05500893f;
  y = fmaf(y, f, 0.24221096f);
  y = fmaf(y, f, 0.69328293f);
  y = fmaf(y, f, 1.0f);
  return __int_as_float(__float_as_int(y) + (__float_as_int(shifted) << 23));
}

}  // namespace maskring::cuda::detail::ptx
