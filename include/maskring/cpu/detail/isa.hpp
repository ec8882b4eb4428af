// SPDX-License-Identifier: Apache-2.0
// Choosing the instruction set at run time.
#pragma once

#include <maskring/cpu/detail/simd.hpp>

#if defined(__x86_64__)
#define MASKRING_TARGET_AVX2 __attribute__((target("avx2,fma,bmi,bmi2"), noinline))
#define MASKRING_TARGET_AVX512                                                                     \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi,bmi2"), noinline))
#endif

namespace maskring::cpu {

/// The instruction sets that the host code is compiled for, each holding those before it.
enum class isa { baseline, avx2, avx512 };

/// The best one that this processor has.
inline isa best_isa() {
#if defined(__x86_64__)
  static const isa best = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      return isa::avx512;
    }
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? isa::avx2
                                                                           : isa::baseline;
  }();
  return best;
#else
  return isa::baseline;
#endif
}

namespace detail {

#if defined(__x86_64__)
template <class Kernel>
MASKRING_TARGET_AVX512 void enter_avx512(const Kernel& kernel) {
  kernel(avx512{});
}
template <class Kernel>
MASKRING_TARGET_AVX2 void enter_avx2(const Kernel& kernel) {
  kernel(avx2{});
}
#endif

/// Runs `kernel(instruction set tag)` in a function compiled for that instruction set. The kernel's
/// call operator is MASKRING_INLINE, or all of it would be compiled for the baseline.
template <class Kernel>
void dispatch(isa level, const Kernel& kernel) {
#if defined(__x86_64__)
  if (level == isa::avx512) return enter_avx512(kernel);
  if (level == isa::avx2) return enter_avx2(kernel);
#endif
  (void)level;
  kernel(baseline{});
}

} // namespace detail
} // namespace maskring::cpu
