// SPDX-License-Identifier: Apache-2.0
// Matrix products of one warp (mma.sync, compute capability 8.0 and later).
#pragma once

#include <maskring/cuda/detail/ptx/element.cuh>

#include <cstdint>
#include <type_traits>

namespace maskring::cuda::detail::ptx {

/// d += a·b for 16 × 8 sums in fp32 (laid out as fragment_layout says) over 16 inner indices.
///
/// `a` is 16 × 16: rows 0–7, rows 8–15 of columns 0–7, then the same of columns 8–15. `b0` and `b1`
/// are inner indices 0–7 and 8–15 of the 8 columns. ldmatrix delivers both.
template <class T>
__device__ inline void mma(float* d, const std::uint32_t (&a)[4], std::uint32_t b0,
                           std::uint32_t b1) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    static_assert(std::is_same_v<T, float16>);
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

} // namespace maskring::cuda::detail::ptx
