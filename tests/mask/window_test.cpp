// SPDX-License-Identifier: Apache-2.0
#include "check.hpp"

#include <maskring/mask/basic.hpp>
#include <maskring/mask/lengths.hpp>
#include <maskring/mask/window.hpp>

#include <cstdlib>
#include <random>
#include <tuple>
#include <vector>

using namespace maskring;
using namespace maskring::testing;

TEST_CASE("causal, windows and prefixes are what their definitions say, exactly over tiles") {
  const audit_shape square{1, 1, 701, 701}, oblong{1, 1, 389, 643};
  for (const audit_shape& shape : {square, oblong}) {
    check_mask(
        "full", shape, mask::full{}, [](int, int, int, int) { return true; }, tightness::exact);
    check_mask(
        "causal", shape, mask::causal{}, [](int, int, int q, int k) { return k <= q; },
        tightness::exact);
    for (int w : {0, 5, 64, 130, 2000}) {
      check_mask(
          "sliding_window", shape, mask::sliding_window{w},
          [w](int, int, int q, int k) { return k <= q && k >= q - w; },
          w >= 4 ? tightness::exact : tightness::loose);
    }
    for (int p : {0, 1, 100, 5000}) {
      check_mask(
          "prefix_lm", shape, mask::prefix_lm{p},
          [p](int, int, int q, int k) { return k < p || k <= q; }, tightness::exact);
    }
  }
}

TEST_CASE("attention sink") {
  for (auto [w, s] : {std::pair{64, 4}, {100, 130}, {0, 1}, {3, 0}, {1000, 7}}) {
    check_mask(
        "attention_sink", {1, 1, 701, 700}, mask::attention_sink{w, s},
        [w = w, s = s](int, int, int q, int k) {
          if (k > q) return false;
          return k < s || q - k <= w;
        },
        w >= 4 ? tightness::exact : tightness::loose);
  }
}

TEST_CASE("dilated window") {
  for (auto [w, d] : {std::pair{64, 2}, {100, 3}, {7, 1}, {300, 128}, {0, 5}, {20, 30}}) {
    check_mask(
        "dilated_window", {1, 1, 397, 643}, mask::dilated_window{w, d},
        [w = w, d = d](int, int, int q, int k) {
          return std::abs(q - k) <= w && std::abs(q - k) % d == 0;
        },
        tightness::loose);
  }
  // A dilation that a stride hides or reveals.
  const shard::striped layout{4096, 4};
  const mask::dilated_window every_fourth{4096, 4};
  const auto same = shard::rewrite(every_fourth, layout.map(1), layout.map(1));
  const auto other = shard::rewrite(every_fourth, layout.map(1), layout.map(2));
  CHECK(verdict_of(same, {{0, 127}, {0, 127}}) == verdict::all);
  CHECK(verdict_of(other, {{0, 127}, {0, 127}}) == verdict::none);
}

TEST_CASE("global window: flagged tokens see and are seen") {
  constexpr int tokens = 701;
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random{seed};
  for (int density : {0, 1, 50}) {
    std::vector<int> flags(tokens);
    for (int& f : flags) f = static_cast<int>(random() % 1000) < density ? 1 : 0;
    for (int i = 128; i < 256; ++i) flags[static_cast<std::size_t>(i)] = 1;
    const mask::int_table table{flags, tokens};
    const double loose = check_mask(
        "global_window", {1, 1, tokens, tokens}, mask::global_window{70, table.view()},
        [&](int, int, int q, int k) {
          return std::abs(q - k) <= 70 || flags[static_cast<std::size_t>(q)] == 1 ||
                 flags[static_cast<std::size_t>(k)] == 1;
        },
        tightness::loose);
    CHECK(loose < 25);
  }
}

TEST_CASE("lengths for each batch entry") {
  const std::vector<int> lengths{700, 0, 311, 128};
  const mask::int_table table{lengths, 4};
  check_mask(
      "key_padding", {4, 2, 197, 700}, mask::key_padding{table.view()},
      [&](int b, int, int, int k) { return k < lengths[static_cast<std::size_t>(b)]; },
      tightness::exact);
  check_mask(
      "batch_prefix_lm", {4, 1, 389, 389}, mask::batch_prefix_lm{table.view()},
      [&](int b, int, int q, int k) { return k < lengths[static_cast<std::size_t>(b)] || k <= q; },
      tightness::exact);
}

TEST_CASE("same_id: groups in any order") {
  constexpr int tokens = 641;
  std::vector<int> ids(tokens);
  for (int i = 0; i < tokens; ++i) ids[static_cast<std::size_t>(i)] = i / 90 * 7 % 5;
  const mask::int_table table{ids, tokens};
  CHECK(!table.view().ascending());
  check_mask(
      "same_id", {1, 1, tokens, tokens}, mask::same_id{table.view()},
      [&](int, int, int q, int k) {
        return ids[static_cast<std::size_t>(q)] == ids[static_cast<std::size_t>(k)];
      },
      tightness::loose);
}

TEST_CASE("windows and lengths refuse bad arguments") {
  const std::vector<int> negative{4, -1};
  const mask::int_table table{negative, 2};
  CHECK_THROWS_WITH_AS(mask::attention_sink(-1, 4),
                       "maskring: attention_sink: width is -1, expected 0 or more",
                       std::invalid_argument);
  CHECK_THROWS_AS(mask::attention_sink(4, -1), std::invalid_argument);
  CHECK_THROWS_AS(mask::dilated_window(-1, 1), std::invalid_argument);
  CHECK_THROWS_AS(mask::dilated_window(1, 0), std::invalid_argument);
  CHECK_THROWS_AS(mask::global_window(-1, table.view()), std::invalid_argument);
  CHECK_THROWS_WITH_AS(mask::key_padding{table.view()},
                       "maskring: key_padding: the least length is -1, expected 0 or more",
                       std::invalid_argument);
  CHECK_THROWS_AS(mask::batch_prefix_lm{table.view()}, std::invalid_argument);
  CHECK_THROWS_WITH_AS((mask::int_table{negative, 3}),
                       "maskring: int_table: 2 values, expected 3 or more", std::invalid_argument);
}
