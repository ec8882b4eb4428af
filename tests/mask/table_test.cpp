// SPDX-License-Identifier: Apache-2.0
#include <maskring/mask/bits.hpp>
#include <maskring/mask/document.hpp>
#include <maskring/mask/table.hpp>

#include <doctest/doctest.h>

#include <random>

using namespace maskring;

static_assert(mask::lookup_table<mask::int_table>);
static_assert(mask::lookup_table<mask::bit_matrix>);
static_assert(mask::lookup_table<mask::document_table>);

TEST_CASE("int_table gives the range of its entries over any range of indices") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random{seed};
  for (int size : {1, 2, 3, 7, 64, 1000}) {
    for (bool sorted : {false, true}) {
      std::vector<int> values(static_cast<std::size_t>(size));
      for (int& v : values) v = static_cast<int>(random() % 2001) - 1000;
      if (sorted) std::sort(values.begin(), values.end());
      const mask::int_table table{values, size};
      const auto view = table.view();
      CHECK(view.least == *std::min_element(values.begin(), values.end()));
      CHECK(view.most == *std::max_element(values.begin(), values.end()));
      for (int trial = 0; trial < 200; ++trial) {
        int lo = static_cast<int>(random() % (size + 4)) - 2;
        int hi = static_cast<int>(random() % (size + 4)) - 2;
        if (lo > hi) std::swap(lo, hi);
        int least = view(lo), most = view(lo);
        for (int i = lo; i <= hi; ++i) {
          least = std::min(least, view(i));
          most = std::max(most, view(i));
        }
        const range got = view(range{lo, hi, 1, key_axis});
        CHECK(got.lo == least);
        CHECK(got.hi == most);
        CHECK(got.depends == key_axis);
      }
      for (int trial = 0; trial < 100; ++trial) { // with a stride
        const int step = 2 + static_cast<int>(random() % 5),
                  count = 1 + static_cast<int>(random() % 20);
        const int lo = static_cast<int>(random() % (size + 4)) - 2, hi = lo + step * count;
        int least = view(lo), most = view(lo);
        for (int i = lo; i <= hi; i += step) {
          least = std::min(least, view(i));
          most = std::max(most, view(i));
        }
        const range got = view(range{lo, hi, step});
        CHECK(got.lo <= least);
        CHECK(got.hi >= most);
        if (lo >= 0 && hi < size) {
          CHECK(got.lo == least);
          CHECK(got.hi == most);
        }
      }
      CHECK(view(-1) == 0);
      CHECK(view(size) == 0);
    }
  }
}

TEST_CASE("a table rebuilt on copied memory reads the same, and equality means the same table") {
  const std::vector<int> values{5, 1, 4, 1, 3};
  const mask::int_table table{values, 5}, twin{values, 5};
  const std::vector<int> copy(table.memory().begin(), table.memory().end());
  const auto moved = table.view_at(copy.data());
  CHECK(moved(range{1, 3}).hi == 4);
  CHECK(moved(4) == 3);
  CHECK(table.view() == table.view());
  CHECK(!(table.view() == twin.view()));
  CHECK(!(table.view() == moved));
}

TEST_CASE("int_table refuses unsorted entries given as sorted, and entries out of range") {
  const std::vector<int> values{0, 2, 1};
  CHECK_THROWS_WITH_AS(mask::int_table::sorted(values, 3),
                       "maskring: int_table: entry 2 is 1, expected 2 or more (a sorted table)",
                       std::invalid_argument);
  const mask::int_table table{values, 3};
  CHECK_NOTHROW(table.require_within("ids", 0, 2));
  CHECK_THROWS_WITH_AS(table.require_within("ids", 0, 1),
                       "maskring: ids: entry 1 is 2, expected 0 to 1", std::invalid_argument);
  CHECK_NOTHROW(mask::int_table(std::vector<int>{}, 0));
}

TEST_CASE("bit_matrix answers for stretches of a row as its bits do") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random{seed};
  for (int columns : {1, 31, 32, 33, 200}) {
    constexpr int rows = 5;
    std::vector<char> bits(static_cast<std::size_t>(rows * columns));
    for (int i = 0; i < rows * columns; ++i) {
      const unsigned chance = i / columns == 0 ? 0 : i / columns == 1 ? 100 : 97;
      bits[static_cast<std::size_t>(i)] = random() % 100 < chance;
    }
    const mask::bit_matrix matrix{rows, columns, [&](auto mark) {
                                    for (int i = 0; i < rows * columns; ++i) {
                                      if (bits[static_cast<std::size_t>(i)])
                                        mark(i / columns, i % columns);
                                    }
                                  }};
    const auto view = matrix.view();
    for (int row = 0; row < rows; ++row) {
      for (int trial = 0; trial < 200; ++trial) {
        int lo = static_cast<int>(random() % columns), hi = static_cast<int>(random() % columns);
        if (lo > hi) std::swap(lo, hi);
        int ones = 0;
        for (int c = lo; c <= hi; ++c) {
          CHECK(view(row, c) == (bits[static_cast<std::size_t>(row * columns + c)] != 0));
          ones += view(row, c);
        }
        const verdict truth = ones == 0             ? verdict::none
                              : ones == hi - lo + 1 ? verdict::all
                                                    : verdict::some;
        CHECK(static_cast<int>(view(row, lo, hi)) == static_cast<int>(truth));
      }
    }
    CHECK(!view(rows, 0));
    CHECK(!view(0, columns));
    CHECK(view(1, index_t{-3}, index_t{columns - 1}) == verdict::some);
  }
  CHECK_THROWS_AS(mask::bit_matrix(2, 2, [](auto mark) { mark(0, 2); }), std::invalid_argument);
  CHECK_THROWS_AS(mask::bit_matrix(2, 2, [](auto mark) { mark(-1, 0); }), std::invalid_argument);
  CHECK_THROWS_AS(mask::bit_matrix(-1, 2, [](auto) {}), std::invalid_argument);
}
