// SPDX-License-Identifier: Apache-2.0
// Warpgroup matrix multiply (sm_90a): D[64, N] += A[64, 16] B[16, N], 16-bit operands, fp32 sums.
//
// Four consecutive warps issue it together and it runs asynchronously: `wgmma_fence` before the
// first of a batch that reads or writes registers which ordinary code touched, `wgmma_commit` after
// the last, `wgmma_wait<Pending>` before the registers are touched again. Warp w of the group holds
// rows 16w … 16w+15 of D and A in the layout of fragment.cuh.
#pragma once

#include <maskring/cuda/detail/ptx/element.cuh>

#include <cstdint>
#include <type_traits>

namespace maskring::cuda::detail::ptx {

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Keeps the compiler from moving uses of these registers across this point.
template <class Register, int Count>
__device__ inline void pin(Register (&registers)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    if constexpr (std::is_same_v<Register, float>) {
      asm volatile("" : "+f"(registers[i])::"memory");
    } else {
      asm volatile("" : "+r"(registers[i])::"memory");
    }
  }
}

/// Waits until at most `Pending` committed batches are in flight; `ready` are the registers of a
/// batch that has then finished.
template <int Pending, class... Fragment>
__device__ inline void wgmma_wait(Fragment&... ready) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
  (pin(ready), ...);
}

/// How rows of an operand are permuted in shared memory: 16-byte units within 128 or 64 bytes.
enum class swizzle : std::uint64_t { bytes_128 = 1, bytes_64 = 2 };

/// Describes an operand in shared memory, in rows of one swizzle width, 8 rows to an atom.
///
/// `atom_stride` is the distance in bytes from one group of 8 rows to the next. Where the rows run
/// along the product's inner dimension (a transposed operand), `chunk_stride` is the distance from
/// one swizzle width of the other dimension to the next; otherwise it is not used.
__device__ inline std::uint64_t describe(const void* tile, swizzle pattern, int atom_stride,
                                         int chunk_stride = 16) {
  const auto address = static_cast<std::uint64_t>(__cvta_generic_to_shared(tile));
  return ((address & 0x3ffff) >> 4) | (static_cast<std::uint64_t>(chunk_stride >> 4) << 16) |
         (static_cast<std::uint64_t>(atom_stride >> 4) << 32) |
         (static_cast<std::uint64_t>(pattern) << 62);
}

/// A descriptor `bytes` further on.
__device__ inline std::uint64_t advance(std::uint64_t descriptor, int bytes) {
  return descriptor + static_cast<std::uint64_t>(bytes >> 4);
}

/// The instruction of one width N. `shared` takes A from shared memory, `registers` from registers.
/// A is [64][16] and B [N][16] with 16 contiguous; with `TransposeA` or `TransposeB` 1 the other
/// way round, [16][64] or [16][N].
template <int N>
struct wgmma;

// An instruction names each of its N/2 accumulators, so their lists are spelled out in eights.
#define MASKRING_NAMES_0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MASKRING_NAMES_1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define MASKRING_NAMES_2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define MASKRING_NAMES_3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define MASKRING_NAMES_4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define MASKRING_NAMES_5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define MASKRING_NAMES_6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define MASKRING_NAMES_7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define MASKRING_NAMES_8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define MASKRING_NAMES_9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define MASKRING_NAMES_10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define MASKRING_NAMES_11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define MASKRING_NAMES_12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define MASKRING_NAMES_13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define MASKRING_NAMES_14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define MASKRING_NAMES_15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define MASKRING_SUMS(i)                                                                           \
  "+f"(d[8 * i]), "+f"(d[8 * i + 1]), "+f"(d[8 * i + 2]), "+f"(d[8 * i + 3]), "+f"(d[8 * i + 4]),  \
      "+f"(d[8 * i + 5]), "+f"(d[8 * i + 6]), "+f"(d[8 * i + 7])
#define MASKRING_NAMES_TO_64                                                                       \
  MASKRING_NAMES_0 ", " MASKRING_NAMES_1 ", " MASKRING_NAMES_2 ", " MASKRING_NAMES_3
#define MASKRING_SUMS_TO_64 MASKRING_SUMS(0), MASKRING_SUMS(1), MASKRING_SUMS(2), MASKRING_SUMS(3)
#define MASKRING_NAMES_TO_80 MASKRING_NAMES_TO_64 ", " MASKRING_NAMES_4
#define MASKRING_SUMS_TO_80 MASKRING_SUMS_TO_64, MASKRING_SUMS(4)
#define MASKRING_NAMES_TO_96 MASKRING_NAMES_TO_80 ", " MASKRING_NAMES_5
#define MASKRING_SUMS_TO_96 MASKRING_SUMS_TO_80, MASKRING_SUMS(5)
#define MASKRING_NAMES_TO_112 MASKRING_NAMES_TO_96 ", " MASKRING_NAMES_6
#define MASKRING_SUMS_TO_112 MASKRING_SUMS_TO_96, MASKRING_SUMS(6)
#define MASKRING_NAMES_TO_128 MASKRING_NAMES_TO_112 ", " MASKRING_NAMES_7
#define MASKRING_SUMS_TO_128 MASKRING_SUMS_TO_112, MASKRING_SUMS(7)
#define MASKRING_NAMES_TO_144 MASKRING_NAMES_TO_128 ", " MASKRING_NAMES_8
#define MASKRING_SUMS_TO_144 MASKRING_SUMS_TO_128, MASKRING_SUMS(8)
#define MASKRING_NAMES_TO_160 MASKRING_NAMES_TO_144 ", " MASKRING_NAMES_9
#define MASKRING_SUMS_TO_160 MASKRING_SUMS_TO_144, MASKRING_SUMS(9)
#define MASKRING_NAMES_TO_176 MASKRING_NAMES_TO_160 ", " MASKRING_NAMES_10
#define MASKRING_SUMS_TO_176 MASKRING_SUMS_TO_160, MASKRING_SUMS(10)
#define MASKRING_NAMES_TO_192 MASKRING_NAMES_TO_176 ", " MASKRING_NAMES_11
#define MASKRING_SUMS_TO_192 MASKRING_SUMS_TO_176, MASKRING_SUMS(11)
#define MASKRING_NAMES_TO_256                                                                      \
  MASKRING_NAMES_TO_192 ", " MASKRING_NAMES_12 ", " MASKRING_NAMES_13 ", " MASKRING_NAMES_14       \
                        ", " MASKRING_NAMES_15
#define MASKRING_SUMS_TO_256                                                                       \
  MASKRING_SUMS_TO_192, MASKRING_SUMS(12), MASKRING_SUMS(13), MASKRING_SUMS(14), MASKRING_SUMS(15)

// The numbers after N are those of the operands that follow the N/2 accumulators.
#define MASKRING_WGMMA(N, n0, n1, n2, n3, n4, n5, n6, n7)                                          \
  template <>                                                                                      \
  struct wgmma<N> {                                                                                \
    template <class T, int TransposeB, int TransposeA = 0>                                         \
    __device__ static void shared(float (&d)[N / 2], std::uint64_t a, std::uint64_t b, int add) {  \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #n2 ", 0;\n"                               \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.%" #n4 ".%" #n4                 \
                   " {" MASKRING_NAMES_TO_##N "}, %" #n0 ", %" #n1 ", p, 1, 1, %" #n5 ", %" #n3    \
                                              ";\n}"                                               \
                   : MASKRING_SUMS_TO_##N                                                          \
                   : "l"(a), "l"(b), "r"(add), "n"(TransposeB), "C"(element_name<T>::value),       \
                     "n"(TransposeA));                                                             \
    }                                                                                              \
    template <class T, int TransposeB>                                                             \
    __device__ static void registers(float (&d)[N / 2], const std::uint32_t* a, std::uint64_t b,   \
                                     int add) {                                                    \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #n5 ", 0;\n"                               \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.%" #n7 ".%" #n7                 \
                   " {" MASKRING_NAMES_TO_##N "}, {%" #n0 ", %" #n1 ", %" #n2 ", %" #n3 "}, %" #n4 \
                                              ", p, 1, 1, %" #n6 ";\n}"                            \
                   : MASKRING_SUMS_TO_##N                                                          \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add),                 \
                     "n"(TransposeB), "C"(element_name<T>::value));                                \
    }                                                                                              \
  };

MASKRING_WGMMA(64, 32, 33, 34, 35, 36, 37, 38, 39)
MASKRING_WGMMA(80, 40, 41, 42, 43, 44, 45, 46, 47)
MASKRING_WGMMA(96, 48, 49, 50, 51, 52, 53, 54, 55)
MASKRING_WGMMA(112, 56, 57, 58, 59, 60, 61, 62, 63)
MASKRING_WGMMA(128, 64, 65, 66, 67, 68, 69, 70, 71)
MASKRING_WGMMA(144, 72, 73, 74, 75, 76, 77, 78, 79)
MASKRING_WGMMA(160, 80, 81, 82, 83, 84, 85, 86, 87)
MASKRING_WGMMA(176, 88, 89, 90, 91, 92, 93, 94, 95)
MASKRING_WGMMA(192, 96, 97, 98, 99, 100, 101, 102, 103)
MASKRING_WGMMA(256, 128, 129, 130, 131, 132, 133, 134, 135)

#undef MASKRING_NAMES_0
#undef MASKRING_NAMES_1
#undef MASKRING_NAMES_2
#undef MASKRING_NAMES_3
#undef MASKRING_NAMES_4
#undef MASKRING_NAMES_5
#undef MASKRING_NAMES_6
#undef MASKRING_NAMES_7
#undef MASKRING_NAMES_8
#undef MASKRING_NAMES_9
#undef MASKRING_NAMES_10
#undef MASKRING_NAMES_11
#undef MASKRING_NAMES_12
#undef MASKRING_NAMES_13
#undef MASKRING_NAMES_14
#undef MASKRING_NAMES_15
#undef MASKRING_NAMES_TO_64
#undef MASKRING_SUMS_TO_64
#undef MASKRING_NAMES_TO_80
#undef MASKRING_SUMS_TO_80
#undef MASKRING_NAMES_TO_96
#undef MASKRING_SUMS_TO_96
#undef MASKRING_NAMES_TO_112
#undef MASKRING_SUMS_TO_112
#undef MASKRING_NAMES_TO_128
#undef MASKRING_SUMS_TO_128
#undef MASKRING_NAMES_TO_144
#undef MASKRING_SUMS_TO_144
#undef MASKRING_NAMES_TO_160
#undef MASKRING_SUMS_TO_160
#undef MASKRING_NAMES_TO_176
#undef MASKRING_SUMS_TO_176
#undef MASKRING_NAMES_TO_192
#undef MASKRING_SUMS_TO_192
#undef MASKRING_NAMES_TO_256
#undef MASKRING_SUMS_TO_256
#undef MASKRING_SUMS
#undef MASKRING_WGMMA

} // namespace maskring::cuda::detail::ptx
