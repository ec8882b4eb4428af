// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <maskring/core/float16.hpp>

#include <cmath>
#include <cstring>
#include <limits>

using namespace maskring;

namespace {

template <class T>
T from_bits(unsigned bits) {
  T value;
  value.bits = static_cast<std::uint16_t>(bits);
  return value;
}

// The neighbours on the way up, for the positive finite values of a 16-bit type.
template <class T>
void check_rounding(unsigned last_finite) {
  for (unsigned bits = 0; bits < last_finite; ++bits) {
    const float low = static_cast<float>(from_bits<T>(bits));
    const float high = static_cast<float>(from_bits<T>(bits + 1));
    const float middle = low + (high - low) / 2; // exact: a binary32 has bits to spare
    REQUIRE(T{low}.bits == bits);
    REQUIRE(T{-low}.bits == (bits | 0x8000u));
    REQUIRE(T{middle}.bits == bits + (bits & 1)); // ties to even
    REQUIRE(T{std::nextafter(middle, 0.0f)}.bits == bits);
    REQUIRE(T{std::nextafter(middle, high)}.bits == bits + 1);
  }
}

} // namespace

TEST_CASE("conversions round to nearest, ties to even, over every value") {
  check_rounding<float16>(0x7bff);
  check_rounding<bfloat16>(0x7f7e);
}

TEST_CASE("known values, infinities, NaN") {
  CHECK(float16{1.0f}.bits == 0x3c00);
  CHECK(float16{65504.0f}.bits == 0x7bff);
  CHECK(float16{65520.0f}.bits == 0x7c00);
  CHECK(float16{-1e30f}.bits == 0xfc00);
  CHECK(float16{0x1p-24f}.bits == 1);
  CHECK(bfloat16{1.0f}.bits == 0x3f80);
  CHECK(bfloat16{std::numeric_limits<float>::max()}.bits == 0x7f80);
  CHECK(std::isnan(static_cast<float>(float16{NAN})));
  CHECK(std::isnan(static_cast<float>(bfloat16{NAN})));
  CHECK(static_cast<float>(float16{INFINITY}) == INFINITY);
}
