// SPDX-License-Identifier: Apache-2.0
// The vector kernels by themselves, for every instruction set that this processor has.
#include "support/tensor.hpp"

#include <maskring/cpu/detail/matmul.hpp>
#include <maskring/cpu/detail/rows.hpp>

#include <doctest/doctest.h>

#include <bit>

namespace {

using namespace maskring;
using namespace maskring::testing;
using namespace maskring::cpu::detail;

template <class Test>
void for_each_isa(const Test& test) {
  for (int level = 0; level <= static_cast<int>(cpu::best_isa()); ++level) {
    CAPTURE(level);
    test(static_cast<cpu::isa>(level));
  }
}

struct exp2_kernel {
  float* x;
  int count;
  template <class Isa>
  MASKRING_INLINE void operator()(Isa) const {
    for (int i = 0; i < count; i += Isa::lanes) {
      typename Isa::reg y;
      simd<Isa>::load(y, x + i);
      simd<Isa>::exp2(y);
      simd<Isa>::store(y, x + i);
    }
  }
};

struct round_kernel {
  float* x;
  template <class Isa>
  MASKRING_INLINE void operator()(Isa) const {
    for (int i = 0; i < 16; i += Isa::lanes) {
      typename Isa::reg y;
      simd<Isa>::load(y, x + i);
      simd<Isa>::round(y);
      simd<Isa>::store(y, x + i);
    }
  }
};

template <class T>
void check_conversion() {
  for_each_isa([](cpu::isa level) {
    std::vector<T> from(65'536);
    for (std::size_t i = 0; i < from.size(); ++i) from[i].bits = static_cast<std::uint16_t>(i);
    std::vector<float> to(from.size());
    const auto count = static_cast<index_t>(from.size());
    dispatch(level, copy_kernel<T>{from.data(), 0, 1, count, to.data()});
    int wrong = 0;
    for (std::size_t i = 0; i < from.size(); ++i) {
      const auto expected = static_cast<float>(from[i]);
      const bool same =
          std::bit_cast<std::uint32_t>(expected) == std::bit_cast<std::uint32_t>(to[i]);
      wrong += !same && !(std::isnan(expected) && std::isnan(to[i]));
    }
    CHECK(wrong == 0);
  });
}

} // namespace

TEST_CASE("2^x is right to about one unit in the last place, and 0 where it underflows") {
  for_each_isa([](cpu::isa level) {
    constexpr int count = 1 << 16;
    std::vector<float> x(count), y;
    for (int i = 0; i < count; ++i) x[i] = -126.0f + 253.0f * static_cast<float>(i) / count;
    y = x;
    dispatch(level, exp2_kernel{y.data(), count});
    double worst = 0;
    for (int i = 0; i < count; ++i) {
      worst = std::max(worst, std::abs(y[i] / std::exp2(static_cast<double>(x[i])) - 1));
    }
    CHECK(worst < 1.2e-7);
    constexpr float infinity = std::numeric_limits<float>::infinity();
    float edge[16] = {-infinity, -127, -1e30f, 0, 1, -126, 0.5f, -0.0f};
    dispatch(level, exp2_kernel{edge, 16});
    CHECK(edge[0] == 0);
    CHECK(edge[1] == 0);
    CHECK(edge[2] == 0);
    CHECK(edge[3] == 1);
    CHECK(edge[4] == 2);
    CHECK(edge[5] == 0x1p-126f);
    CHECK(edge[7] == 1);
  });
}

TEST_CASE("rounding: to the nearest integer, and nothing else changes") {
  for_each_isa([](cpu::isa level) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    const float before[16] = {0.4f,    0.6f,     -7.3f, -7.6f,     4194303.5f,
                              4194305, -1.5e10f, 3e38f, -infinity, infinity};
    const float after[16] = {0, 1, -7, -8, 4194304, 4194305, -1.5e10f, 3e38f, -infinity, infinity};
    float x[16];
    std::copy_n(before, 16, x);
    x[15] = std::nanf("");
    dispatch(level, round_kernel{x});
    for (int i = 0; i < 15; ++i) CHECK(x[i] == after[i]);
    CHECK(std::isnan(x[15]));
  });
}

TEST_CASE("vectors of 16-bit numbers convert as single ones do") {
  check_conversion<float16>();
  check_conversion<bfloat16>();
}

TEST_CASE("products and transposes of every shape") {
  std::mt19937_64 random{3};
  for_each_isa([&](cpu::isa level) {
    for (int round = 0; round < 60; ++round) {
      const int rows = 1 + static_cast<int>(random() % 40), depth = static_cast<int>(random() % 30);
      const int columns = 16 * (1 + static_cast<int>(random() % 7));
      CAPTURE(rows);
      CAPTURE(depth);
      CAPTURE(columns);
      const auto a = random_tensor<float, 2>(random, {rows, depth + 3});
      const auto at = random_tensor<float, 2>(random, {depth + 1, rows + 5});
      const auto b = random_tensor<float, 2>(random, {depth + 1, columns + 16});
      const auto start = random_tensor<float, 2>(random, {rows, columns + 16});
      auto c = start, d = start;
      multiply<left::rows, into::fresh>(level, {a.storage().data(), depth + 3, b.storage().data(),
                                                columns + 16, c.storage().data(), columns + 16,
                                                rows, columns, depth});
      multiply<left::columns, into::sum>(level, {at.storage().data(), rows + 5, b.storage().data(),
                                                 columns + 16, d.storage().data(), columns + 16,
                                                 rows, columns, depth});
      double worst = 0;
      for (int i = 0; i < rows; ++i) {
        for (int j = 0; j < columns + 16; ++j) {
          double along = 0, down = start(i, j);
          for (int k = 0; k < depth; ++k) {
            along += static_cast<double>(a(i, k)) * b(k, j);
            down += static_cast<double>(at(k, i)) * b(k, j);
          }
          if (j >= columns) along = down = start(i, j); // not to be touched
          worst = std::max({worst, std::abs(along - c(i, j)), std::abs(down - d(i, j))});
        }
      }
      CHECK(worst < 1e-5);

      const int count = 1 + static_cast<int>(random() % query_block);
      const auto from = random_tensor<float, 2>(random, {count, depth + 1});
      std::vector<float> to(static_cast<std::size_t>(depth + 1) * query_block, 7.0f);
      dispatch(level, transpose_kernel{
                          {from.storage().data(), depth + 1}, count, depth + 1, 2.0f, to.data()});
      bool same = true;
      for (int k = 0; k <= depth; ++k) {
        for (int l = 0; l < padded_lanes(count); ++l) {
          same &= to[k * query_block + l] == (l < count ? 2.0f * from(l, k) : 0.0f);
        }
      }
      CHECK(same);
    }
  });
}

TEST_CASE("compensated sums of many products do not collect their roundings") {
  std::mt19937_64 random{4};
  for_each_isa([&](cpu::isa level) {
    constexpr int rows = 7, depth = 3, columns = 48, terms = 1000;
    tensor<float, 2> plain{{rows, columns}}, sum = plain, lost = plain;
    tensor<double, 2> exact{{rows, columns}};
    for (int n = 0; n < terms; ++n) {
      const auto a = random_tensor<float, 2>(random, {rows, depth});
      auto b = random_tensor<float, 2>(random, {depth, columns});
      for (float& x : b.storage()) x = std::abs(x) + 0.1f;
      multiply<left::rows, into::sum>(level,
                                      {a.storage().data(), depth, b.storage().data(), columns,
                                       plain.storage().data(), columns, rows, columns, depth});
      multiply<left::rows, into::compensated>(level, {a.storage().data(), depth, b.storage().data(),
                                                      columns, sum.storage().data(), columns, rows,
                                                      columns, depth, lost.storage().data()});
      for (int i = 0; i < rows; ++i) {
        for (int j = 0; j < columns; ++j) {
          for (int k = 0; k < depth; ++k) exact(i, j) += static_cast<double>(a(i, k)) * b(k, j);
        }
      }
    }
    // What is left are the roundings of the terms themselves, of size 1 to 10.
    CHECK(max_error(sum, exact) < 1.5e-5);
    CHECK(max_error(plain, exact) > 3e-5);
  });
}
