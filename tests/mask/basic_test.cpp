// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "support/random_masks.hpp"

#include <maskring/mask/basic.hpp>
#include <maskring/mask/compose.hpp>
#include <maskring/mask/document.hpp>

#include <functional>

using namespace maskring;
using testing::check_verdicts;

namespace {

// Masks as a user may write them.
struct generic_window {
  int width;
  constexpr auto operator()(auto, auto, auto q, auto kv) const {
    return (q >= kv) & (q - kv <= width);
  }
};
struct branching {
  bool operator()(int, int h, int q, int kv) const {
    if (q < kv) return false;
    return (q - kv) % (h + 2) == 0;
  }
};

template <class Mask>
void check_pairs(const Mask& mask, const std::function<bool(int, int)>& expected, int length) {
  for (int q = 0; q < length; ++q) {
    for (int kv = 0; kv < length; ++kv) {
      if (static_cast<bool>(mask(0, 0, q, kv)) != expected(q, kv)) {
        FAIL_CHECK("wrong at q " << q << ", kv " << kv);
        return;
      }
    }
  }
}

// What kernels ask at compile time to choose their shapes.
constexpr tile everything{.q = {0, 1 << 20}, .kv = {0, 1 << 20}};
constexpr tile far_below{.q = {1 << 20, (1 << 20) + 255}, .kv = {0, 255}};
struct stateless {
  constexpr auto operator()(auto, auto, auto q, auto kv) const { return q >= kv; }
};
static_assert(maskring::detail::surely_keeps<mask::full, everything>);
static_assert(!maskring::detail::surely_keeps<mask::causal, everything>);
static_assert(maskring::detail::surely_keeps<mask::causal, far_below>);
static_assert(maskring::detail::surely_keeps<stateless, far_below>);
static_assert(!maskring::detail::surely_keeps<generic_window, far_below>); // its width is unknown
static_assert(!maskring::detail::surely_keeps<branching, far_below>);
static_assert(!maskring::detail::surely_keeps<void, far_below>);

} // namespace

TEST_CASE("the basic masks are what their definitions say") {
  check_pairs(
      mask::full{}, [](int, int) { return true; }, 9);
  check_pairs(
      mask::causal{}, [](int q, int kv) { return kv <= q; }, 9);
  check_pairs(
      mask::sliding_window{3}, [](int q, int kv) { return kv <= q && kv + 3 >= q; }, 20);
  check_pairs(
      mask::prefix_lm{4}, [](int q, int kv) { return kv <= q || kv <= 3; }, 20);
  const std::vector<int> ids{0, 0, 0, 2, 2, 3, 3, 3, 3, 5};
  const auto table = mask::document_table::from_ids(ids);
  check_pairs(
      mask::document{table.view()}, [&](int q, int kv) { return ids[q] == ids[kv]; }, 10);
  check_pairs(
      mask::document{table.view(), mask::causal{}},
      [&](int q, int kv) { return ids[q] == ids[kv] && kv <= q; }, 10);
  check_pairs(
      mask::document{table.view(), mask::prefix_lm{1}},
      [&](int q, int kv) {
        return ids[q] == ids[kv] && (kv <= q || kv == 0 || ids[kv - 1] != ids[kv]);
      },
      10);
}

TEST_CASE("compositions") {
  check_pairs(
      mask::causal{} & mask::prefix_lm{3}, [](int q, int kv) { return kv <= q; }, 9);
  check_pairs(
      mask::sliding_window{2} | (mask::prefix_lm{0} & mask::full{}),
      [](int q, int kv) { return kv <= q; }, 9);
  check_pairs(
      !mask::causal{}, [](int q, int kv) { return q < kv; }, 9);
  check_pairs(
      mask::shift{mask::causal{}, 3, 1}, [](int q, int kv) { return kv + 1 <= q + 3; }, 9);
  check_pairs(
      mask::causal{} & generic_window{2}, [](int q, int kv) { return kv <= q && q - kv <= 2; }, 9);
}

TEST_CASE("verdicts of the basic masks are exact, those of random compositions sound") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random{seed};
  const auto number = [&](int lo, int hi) {
    return std::uniform_int_distribution<int>{lo, hi}(random);
  };
  for (int trial = 0; trial < 40; ++trial) {
    const mask::sliding_window window{number(0, 40)};
    const mask::prefix_lm prefix{number(0, 60)};
    std::vector<int> lengths;
    for (int d = 0; d < 9; ++d) lengths.push_back(number(0, 30));
    lengths.push_back(97);
    const auto table = mask::document_table::from_lengths(lengths);
    const mask::document documents{table.view()};
    const mask::document document_causal{table.view(), mask::causal{}};
    const mask::document document_window{table.view(), mask::sliding_window{number(0, 9)}};
    check_verdicts(mask::full{}, 97, 97, random, true);
    check_verdicts(mask::causal{}, 97, 89, random, true);
    check_verdicts(window, 97, 89, random, true);
    check_verdicts(generic_window{number(0, 40)}, 97, 89, random, true);
    check_verdicts(prefix, 97, 89, random, true);
    check_verdicts(documents, 97, 97, random, true);
    check_verdicts(document_causal, 97, 97, random, true);
    check_verdicts(document_window, 97, 97, random, true);
    check_verdicts(window | (prefix & documents), 97, 97, random);
    check_verdicts((!document_causal) & mask::shift{window, number(-9, 9), number(-9, 9)}, 97, 97,
                   random);
    check_verdicts((mask::causal{} & documents) | !(prefix | window), 97, 97, random);
    check_verdicts(document_causal, 97 + 20, 97 + 20, random); // tokens beyond the table
  }
}

TEST_CASE("what a mask depends on shows in its truth") {
  const tile all{{0, 9}, {0, 9}, {0, 3}, {0, 3}};
  CHECK(truth_of(mask::causal{}, all).depends() == (query_axis | key_axis));
  CHECK(truth_of(mask::full{}, all).depends() == 0);
  CHECK(truth_of(mask::causal{} & branching{}, all).depends() == every_axis);
  CHECK(truth_of(mask::uniform{branching{}}, all).depends() == (query_axis | key_axis));
}

TEST_CASE("a mask on ints is not asked about ranges") {
  static_assert(mask_mod<branching> && !classifiable_mask<branching>);
  static_assert(needs_elements<decltype(mask::causal{} & branching{})>);
  static_assert(!needs_elements<decltype(mask::causal{} & mask::full{})>);
  CHECK(verdict_of(branching{}, {{0, 3}, {4, 5}}) == verdict::some);
  CHECK(verdict_of(mask::causal{} & branching{}, {{0, 3}, {4, 5}}) == verdict::none);
  CHECK(elementwise_verdict(branching{}, 0, 0, {0, 3}, {4, 5}) == verdict::none);
}

TEST_CASE("arguments that make no mask are refused by name") {
  CHECK_THROWS_WITH_AS(mask::sliding_window{-1},
                       "maskring: sliding_window: width is -1, expected 0 or more",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(mask::prefix_lm{-2}, "maskring: prefix_lm: length is -2, expected 0 or more",
                       std::invalid_argument);
  const std::vector<int> unsorted{0, 1, 0}, negative{-1, 0}, lengths{2, -3};
  CHECK_THROWS_AS(mask::document_table::from_ids(unsorted), std::invalid_argument);
  CHECK_THROWS_AS(mask::document_table::from_ids(negative), std::invalid_argument);
  CHECK_THROWS_AS(mask::document_table::from_lengths(lengths), std::invalid_argument);
  const auto table = mask::document_table::from_lengths(std::vector<int>{3, 4});
  CHECK_NOTHROW(table.require_covers(7));
  CHECK_THROWS_WITH_AS(table.require_covers(8),
                       "maskring: document: the table covers 7 tokens, expected the sequence's 8",
                       std::invalid_argument);
}
