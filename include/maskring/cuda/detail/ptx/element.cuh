// SPDX-License-Identifier: Apache-2.0
// The 16-bit element types as the tensor cores name them, and conversion from fp32 pairs.
#pragma once

#include <maskring/core/float16.hpp>

#include <cstdint>
#include <type_traits>

namespace maskring::cuda::detail::ptx {

/// The name of an element type inside instruction names.
template <class T>
struct element_name;
template <>
struct element_name<bfloat16> {
  static constexpr char value[] = "bf16";
};
template <>
struct element_name<float16> {
  static constexpr char value[] = "f16";
};

/// Rounds two floats to nearest even; `low` lands in the lower half, the lower address.
template <class T>
__device__ inline std::uint32_t pack(float low, float high) {
  std::uint32_t word;
  asm("cvt.rn.%1x2.f32 %0, %2, %3;"
      : "=r"(word)
      : "C"(element_name<T>::value), "f"(high), "f"(low));
  return word;
}

/// The two floats that were packed, in this order.
template <class T>
__device__ inline void unpack(std::uint32_t word, float& low, float& high) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    low = __uint_as_float(word << 16);
    high = __uint_as_float(word & 0xffff0000u);
  } else {
    asm("{.reg .f16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
        : "=f"(low), "=f"(high)
        : "r"(word));
  }
}

} // namespace maskring::cuda::detail::ptx
