// SPDX-License-Identifier: Apache-2.0
// Four 8 × 8 matrices of 16-bit elements between shared memory and the lanes of a warp.
#pragma once

#include <cstdint>

namespace maskring::cuda::detail::ptx {

/// Lane l names the 16-byte row l % 8 of matrix l / 8 (a shared-memory address); word m of lane l
/// becomes elements 2(l % 4), +1 of row l / 4 of matrix m.
__device__ inline void load_matrices(std::uint32_t (&word)[4], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(row));
}

/// The same with each matrix transposed on the way.
__device__ inline void load_matrices_transposed(std::uint32_t (&word)[4], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(row));
}

/// The way back (compute capability 9.0).
__device__ inline void store_matrices(std::uint32_t row, const std::uint32_t (&word)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
               : "memory");
}

} // namespace maskring::cuda::detail::ptx
