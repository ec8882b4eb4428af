// SPDX-License-Identifier: Apache-2.0
// Vector registers, written with the vector extensions of GCC and Clang, and 2^x over them.
#pragma once

#include <maskring/core/float16.hpp>

#include <cstdint>

#if !defined(__GNUC__)
#error "maskring's host attention needs the vector extensions of GCC or Clang"
#endif
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "maskring marks masked scores by -inf: compile without -ffast-math and -ffinite-math-only"
#endif

/// Hot code is a template without a target attribute of its own; it must be inlined into a function
/// that has one (isa.hpp), or it would be compiled for the oldest processor.
#define MASKRING_INLINE inline __attribute__((always_inline))

#if defined(__CUDACC__) // nvcc hands the pragma on, but wonders at it
#define MASKRING_UNROLL                                                                            \
  _Pragma("nv_diag_suppress 1675") _Pragma("GCC unroll 16") _Pragma("nv_diag_default 1675")
#elif defined(__clang__)
#define MASKRING_UNROLL _Pragma("unroll")
#else
#define MASKRING_UNROLL _Pragma("GCC unroll 16")
#endif

namespace maskring::cpu::detail {

// What a register of each instruction set holds, and the block of results (rows × vectors) that
// matrix products keep in registers. Unaligned types are for memory only. zip(a, b) leaves the
// entries of a and b in turns: a0 b0 a1 b1 … in a and then in b.

struct avx512 {
  typedef float reg __attribute__((vector_size(64)));
  typedef std::int32_t ireg __attribute__((vector_size(64)));
  typedef std::uint32_t ureg __attribute__((vector_size(64)));
  typedef float unaligned __attribute__((vector_size(64), aligned(4), may_alias));
  typedef std::uint16_t halves __attribute__((vector_size(32), aligned(2), may_alias));
  static constexpr int lanes = 16, rows = 6, vectors = 4;

  static MASKRING_INLINE void zip(reg& a, reg& b) {
    const reg low =
        __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    b = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    a = low;
  }
};

struct avx2 {
  typedef float reg __attribute__((vector_size(32)));
  typedef std::int32_t ireg __attribute__((vector_size(32)));
  typedef std::uint32_t ureg __attribute__((vector_size(32)));
  typedef float unaligned __attribute__((vector_size(32), aligned(4), may_alias));
  typedef std::uint16_t halves __attribute__((vector_size(16), aligned(2), may_alias));
  static constexpr int lanes = 8, rows = 6, vectors = 2;

  static MASKRING_INLINE void zip(reg& a, reg& b) {
    const reg low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    b = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    a = low;
  }
};

/// What every processor of the compiler's target has: SSE2 on x86-64, NEON on AArch64.
struct baseline {
  typedef float reg __attribute__((vector_size(16)));
  typedef std::int32_t ireg __attribute__((vector_size(16)));
  typedef std::uint32_t ureg __attribute__((vector_size(16)));
  typedef float unaligned __attribute__((vector_size(16), aligned(4), may_alias));
  typedef std::uint16_t halves __attribute__((vector_size(8), aligned(2), may_alias));
#if defined(__aarch64__)
  static constexpr int lanes = 4, rows = 6, vectors = 4; // of 32 registers
#else
  static constexpr int lanes = 4, rows = 4, vectors = 2; // of 16
#endif

  static MASKRING_INLINE void zip(reg& a, reg& b) {
    const reg low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    b = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    a = low;
  }
};

// Registers are passed by reference only: passing them by value would tie the functions' calling
// convention to an instruction set that the translation unit need not have.

template <class Isa>
struct simd {
  using reg = typename Isa::reg;
  using ireg = typename Isa::ireg;
  using ureg = typename Isa::ureg;

  static MASKRING_INLINE void load(reg& x, const float* from) {
    x = *reinterpret_cast<const typename Isa::unaligned*>(from);
  }
  static MASKRING_INLINE void load(reg& x, const bfloat16* from) {
    ireg bits;
    load_bits(bits, from);
    x = (reg)(bits << 16);
  }
  static MASKRING_INLINE void load(reg& x, const float16* from) {
    ireg bits;
    load_bits(bits, from);
    const ireg magnitude = bits & 0x7fff;
    const reg subnormal = __builtin_convertvector(magnitude, reg) * 0x1p-24f;
    const ireg special = magnitude >= 0x7c00 ? ireg{} + 0x7f800000 : ireg{};
    const ireg normal = ((magnitude << 13) + 0x38000000) | special;
    const ireg whole = magnitude < 0x400 ? (ireg)subnormal : normal;
    x = (reg)(whole | (bits & 0x8000) << 16);
  }
  static MASKRING_INLINE void store(const reg& x, float* to) {
    *reinterpret_cast<typename Isa::unaligned*>(to) = x;
  }
  static MASKRING_INLINE void fill(reg& x, float value) {
    MASKRING_UNROLL
    for (int i = 0; i < Isa::lanes; ++i) x[i] = value;
  }

  /// x = max(x, y)
  static MASKRING_INLINE void raise(reg& x, const reg& y) { x = x > y ? x : y; }

  /// x to the nearest integer where floats still have fractions of 1/2; as it is elsewhere.
  static MASKRING_INLINE void round(reg& x) {
    const reg nearest = (x + to_integer) - to_integer;
    x = ((x < 0x1p22f) & (x > -0x1p22f)) ? nearest : x;
  }

  /// x = 2^x for x ≤ 127, to about one unit in the last place; 0 below −126 and for −inf. The
  /// nearest integer goes into the exponent; on the rest, [−½, ½], stands the polynomial of degree
  /// 6 whose largest relative error is least (Remez's exchange; 2.6e-9 before rounding).
  static MASKRING_INLINE void exp2(reg& x) {
    const reg shifted = x + to_integer;
    const reg fraction = x - (shifted - to_integer);
    reg y = fraction * coefficient[6] + coefficient[5];
    y = y * fraction + coefficient[4];
    y = y * fraction + coefficient[3];
    y = y * fraction + coefficient[2];
    y = y * fraction + coefficient[1];
    y = y * fraction + coefficient[0];
    const ureg exponent = (ureg)shifted << 23;
    const reg scaled = (reg)((ureg)y + exponent);
    x = x < -126.0f ? reg{} : scaled;
  }

private:
  template <class Half>
  static MASKRING_INLINE void load_bits(ireg& bits, const Half* from) {
    bits = __builtin_convertvector(*reinterpret_cast<const typename Isa::halves*>(from), ireg);
  }

  /// Adding it leaves the nearest integer in the low bits.
  static constexpr float to_integer = 0x1.8p23f;

  static constexpr float coefficient[] = {1.0f,         0.69314724f,   0.24022652f,   0.055503104f,
                                          0.009617693f, 0.0013406643f, 0.00015594678f};
};

} // namespace maskring::cpu::detail
