// SPDX-License-Identifier: Apache-2.0
// Products of fp32 tiles in shared memory by a block of 256 threads, in fp32 or TF32 arithmetic.
#pragma once

#include <maskring/cuda/executor.cuh>

#include <cstdint>

namespace maskring::cuda::detail::fp32 {

inline constexpr int block_threads = 256;

/// A tile in shared memory: entry (i, j) lies at i·row + j·column.
template <int Row, int Column>
struct tile_of {
  const float* data;
  __device__ float operator()(int i, int j) const { return data[i * Row + j * Column]; }
};
template <int Stride>
using rows_tile = tile_of<Stride, 1>;
template <int Stride>
using columns_tile = tile_of<1, Stride>; ///< the transpose of what lies there by rows

/// A `Rows` × `Columns` matrix of sums, dealt out to the threads. visit(f) calls f(row, column,
/// sum) for each of a thread's sums; add(a, b) adds a·b over `Inner`.
template <float_math Math, int Rows, int Columns>
class sums;

/// Plain fused multiply-adds. Thread (x, y) of 16 × 16 owns rows y + 16i and columns x + 16j: reads
/// of 16 neighbours either fall together or lie in different banks.
template <int Rows, int Columns>
class sums<float_math::ieee, Rows, Columns> {
  static constexpr int rows = Rows / 16, columns = Columns / 16;
  static_assert(Rows % 16 == 0 && Columns % 16 == 0);

public:
  template <class Visit>
  __device__ void visit(Visit&& f) {
#pragma unroll
    for (int i = 0; i < rows; ++i) {
#pragma unroll
      for (int j = 0; j < columns; ++j) f(y() + 16 * i, x() + 16 * j, value_[i][j]);
    }
  }

  template <int Inner, class A, class B>
  __device__ void add(A a, B b) {
#pragma unroll 4
    for (int k = 0; k < Inner; ++k) {
      float left[rows], right[columns];
#pragma unroll
      for (int i = 0; i < rows; ++i) left[i] = a(y() + 16 * i, k);
#pragma unroll
      for (int j = 0; j < columns; ++j) right[j] = b(k, x() + 16 * j);
#pragma unroll
      for (int i = 0; i < rows; ++i) {
#pragma unroll
        for (int j = 0; j < columns; ++j) value_[i][j] += left[i] * right[j];
      }
    }
  }

private:
  static __device__ int x() { return static_cast<int>(threadIdx.x) % 16; }
  static __device__ int y() { return static_cast<int>(threadIdx.x) / 16; }
  float value_[rows][columns] = {};
};

/// mma.sync m16n8k8 on operands rounded to TF32; sums lie as fragment_layout says. The 8 warps form
/// a grid of 16-row strips by column strips.
template <int Rows, int Columns>
class sums<float_math::tf32, Rows, Columns> {
  static constexpr int strips = Rows / 16;                   // along the rows
  static constexpr int columns = Columns / (8 / strips) / 8; // groups of 8 to a warp
  static_assert(8 % strips == 0 && columns * (8 / strips) * 8 == Columns);

public:
  template <class Visit>
  __device__ void visit(Visit&& f) {
#pragma unroll
    for (int j = 0; j < columns; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        f(row() + 8 * (e / 2), column() + 8 * j + 2 * (lane() % 4) + e % 2, value_[j][e]);
      }
    }
  }

  template <int Inner, class A, class B>
  __device__ void add(A a, B b) {
    const int r = row(), quad = lane() % 4;
#pragma unroll 2
    for (int k = 0; k < Inner; k += 8) {
      const std::uint32_t left[4] = {round(a(r, k + quad)), round(a(r + 8, k + quad)),
                                     round(a(r, k + quad + 4)), round(a(r + 8, k + quad + 4))};
#pragma unroll
      for (int j = 0; j < columns; ++j) {
        const int c = column() + 8 * j + lane() / 4;
        const std::uint32_t right[2] = {round(b(k + quad, c)), round(b(k + quad + 4, c))};
        float(&d)[4] = value_[j];
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]),
                       "r"(right[1]));
      }
    }
  }

private:
  static __device__ std::uint32_t round(float x) {
    std::uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
  }
  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
  static __device__ int row() { return warp() % strips * 16 + lane() / 4; }
  static __device__ int column() { return warp() / strips * columns * 8; }
  float value_[columns][4] = {};
};

} // namespace maskring::cuda::detail::fp32
