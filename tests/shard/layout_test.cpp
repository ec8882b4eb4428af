// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "support/random_masks.hpp"

#include <maskring/mask/basic.hpp>
#include <maskring/mask/document.hpp>
#include <maskring/shard/rewrite.hpp>

#include <vector>

using namespace maskring;

namespace {

struct distance {
  constexpr auto operator()(auto s, int, int, int q, int kv) const { return s + (q - kv); }
};

template <class Layout, class F>
void for_many(F check) {
  for (index_t sequence : {0, 1, 2, 5, 7, 16, 64, 97}) {
    for (int ranks : {1, 2, 3, 4, 7, 8, 11}) check(Layout{sequence, ranks});
  }
}

template <class Layout>
void check_partition(const Layout& layout) {
  INFO(Layout::name << " of " << layout.sequence() << " over " << layout.ranks());
  std::vector<int> owners(static_cast<std::size_t>(layout.sequence()), 0);
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    int before = -1;
    for (int local = 0; local < layout.size(rank); ++local) {
      const int global = layout.map(rank)(local);
      REQUIRE(global >= 0);
      REQUIRE(global < layout.sequence());
      CHECK(global > before); // each shard keeps the order of the sequence
      before = global;
      ++owners[static_cast<std::size_t>(global)];
    }
  }
  for (int count : owners) REQUIRE(count == 1);
}

// The image of a range must be exactly the images of its members.
template <class Layout>
void check_images(const Layout& layout) {
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    const auto map = layout.map(rank);
    for (index_t lo = 0; lo < layout.size(rank); ++lo) {
      for (index_t step : {1, 2, 3}) {
        for (index_t hi = lo; hi < layout.size(rank); hi += step) {
          const shard::image image = map(range{lo, hi, step});
          std::vector<index_t> expected, found;
          for (index_t i = lo; i <= hi; i += step) expected.push_back(map(static_cast<int>(i)));
          for (int p = 0; p < image.count; ++p) {
            const range piece = image.pieces[p];
            for (index_t g = piece.lo; g <= piece.hi; g += max(piece.step, index_t{1})) {
              found.push_back(g);
            }
          }
          REQUIRE(found == expected);
        }
      }
    }
  }
}

} // namespace

TEST_CASE_TEMPLATE("every token has one owner, for any length and number of ranks", Layout,
                   shard::contiguous, shard::zigzag, shard::striped) {
  for_many<Layout>([](const Layout& layout) { check_partition(layout); });
}

TEST_CASE_TEMPLATE("the image of a range is exact", Layout, shard::contiguous, shard::zigzag,
                   shard::striped) {
  check_images(Layout{37, 3});
  check_images(Layout{16, 4});
  check_images(Layout{5, 7});
}

TEST_CASE("the contiguous rewrite is query index + rank x shard size") {
  const shard::contiguous layout{1024, 4};
  const auto local = shard::rewrite(mask::causal{}, layout.map(2), shard::whole{});
  static_assert(sizeof(layout.map(2)) == sizeof(int));
  for (int q : {0, 1, 255}) {
    for (int kv : {0, 511, 512, 513, 767, 1023}) CHECK(local(0, 0, q, kv) == (q + 2 * 256 >= kv));
  }
  CHECK(verdict_of(local, {{0, 255}, {0, 511}}) == verdict::all);
  CHECK(verdict_of(local, {{0, 255}, {768, 1023}}) == verdict::none);
}

TEST_CASE_TEMPLATE("rewritten masks stay exact on every layout", Layout, shard::contiguous,
                   shard::zigzag, shard::striped) {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed << ", " << Layout::name);
  std::mt19937 random{seed};
  const auto table = mask::document_table::from_lengths(std::vector<int>{40, 1, 0, 90, 33, 7, 102});
  for (int ranks : {2, 3, 5}) {
    const Layout layout{273, ranks};
    for (int from = 0; from < ranks; ++from) {
      for (int to = 0; to < ranks; ++to) {
        const auto check = [&](auto mask) {
          testing::check_verdicts(shard::rewrite(mask, layout.map(from), layout.map(to)),
                                  layout.size(from), layout.size(to), random, true, 60);
        };
        check(mask::causal{});
        check(mask::sliding_window{3});
        check(mask::sliding_window{70});
        check(mask::prefix_lm{50});
        check(mask::document{table.view()});
        check(mask::document{table.view(), mask::causal{}});
      }
    }
  }
}

TEST_CASE("score modifiers see global indices") {
  const shard::striped layout{100, 4};
  const auto local = shard::rewrite(distance{}, layout.map(3), layout.map(1));
  CHECK(local(0.5f, 0, 0, 2, 5) == 0.5f + (3 + 2 * 4) - (1 + 5 * 4));
  static_assert(
      std::is_same_v<decltype(shard::rewrite(score::none{}, shard::whole{}, shard::whole{})),
                     score::none>);
}

TEST_CASE("layouts that make no sense are refused") {
  CHECK_THROWS_WITH_AS((shard::zigzag{8, 0}), "maskring: zigzag: ranks is 0, expected 1 or more",
                       std::invalid_argument);
  CHECK_THROWS_AS((shard::contiguous{-1, 2}), std::invalid_argument);
  CHECK_THROWS_AS((shard::striped{index_t{1} << 31, 2}), std::invalid_argument);
}
