// SPDX-License-Identifier: Apache-2.0
// Sums to which many threads add, the same in whatever order they do.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace maskring::score {

namespace detail {
/// *at += x, whole even if other threads add at the same time, on the host or a device.
constexpr void add_shared(std::int64_t* at, int x) {
  if (std::is_constant_evaluated()) {
    *at += x;
    return;
  }
#ifdef __CUDA_ARCH__
  // Neighbours mostly add to one number: a warp's lanes first sum up what goes to the same address.
  const unsigned lanes = __match_any_sync(__activemask(), reinterpret_cast<unsigned long long>(at));
  const std::int64_t sum = __reduce_add_sync(lanes, x);
  if (threadIdx.x % 32 == static_cast<unsigned>(__ffs(static_cast<int>(lanes)) - 1)) {
    atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(sum));
  }
#else
  std::atomic_ref<std::int64_t>{*at}.fetch_add(x, std::memory_order_relaxed);
#endif
}
} // namespace detail

/// A sum of floats without rounding, so that it does not depend on the order in which threads add:
/// gradients of what score modifiers learn are the same bits each time.
///
/// A fixed-point number over the whole range of float (U. Kulisch, "Computer Arithmetic and
/// Validity", 2008) whose digits have room for carries: a term adds to two neighbouring digits, and
/// integers add up alike in any order. Exact for 2^39 terms, about 5·10^11. A term that is not
/// finite makes the sum NaN. All bytes 0 is the empty sum.
struct exact_sum {
  static constexpr int digits = 12, bits = 24;
  std::int64_t digit[digits] = {}; ///< the sum is Σ digit[i] · 2^(24 i − 149)
  std::int64_t not_finite = 0;     ///< terms that were infinite or NaN

  /// May be called from many threads at once, of the host or of one-dimensional blocks of a device.
  /// Not inlined: a kernel would hold a copy for every score that a thread works on.
  [[gnu::noinline]] constexpr void add(float x) {
    const auto word = std::bit_cast<std::uint32_t>(x);
    const int exponent = static_cast<int>(word >> 23 & 0xff);
    if (exponent == 0xff) return detail::add_shared(&not_finite, 1);
    // |x| = mantissa · 2^(place − 149)
    const std::uint64_t mantissa = (word & 0x7fffffu) | (exponent > 0 ? 0x800000u : 0u);
    const int place = exponent > 0 ? exponent - 1 : 0;
    const std::uint64_t shifted = mantissa << place % bits;
    const int low = static_cast<int>(shifted & 0xffffffu), high = static_cast<int>(shifted >> bits);
    const int sign = word >> 31 ? -1 : 1;
    std::int64_t* const at = digit + place / bits;
    detail::add_shared(at, sign * low);
    detail::add_shared(at + 1, sign * high);
  }

  /// The sum, rounded to double within one unit of its last place.
  constexpr double value() const {
    if (not_finite != 0) return std::numeric_limits<double>::quiet_NaN();
    std::int64_t small[digits] = {}; // the same number, all digits but the last from 0 to 2^24 − 1
    std::int64_t carry = 0;
    for (int i = 0; i < digits; ++i) {
      const std::int64_t sum = digit[i] + carry;
      carry = i + 1 < digits ? sum >> bits : 0;
      small[i] = sum - carry * (std::int64_t{1} << bits);
    }
    double sum = 0;
    for (int i = digits - 1; i >= 0; --i) sum = sum * (1 << bits) + static_cast<double>(small[i]);
    return sum * 0x1p-149;
  }
};

} // namespace maskring::score
