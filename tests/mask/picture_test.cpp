// SPDX-License-Identifier: Apache-2.0
#include "check.hpp"

#include <maskring/mask/block_sparse.hpp>
#include <maskring/mask/cross_intervals.hpp>
#include <maskring/mask/neighbourhood.hpp>
#include <maskring/mask/sliding_tile.hpp>
#include <maskring/mask/video_heads.hpp>

#include <algorithm>
#include <cmath>
#include <random>
#include <tuple>
#include <vector>

using namespace maskring;
using namespace maskring::testing;
using mask::extent_2d;

namespace {

struct pixel {
  int x, y;
};

template <class Place>
auto neighbours(extent_2d canvas, extent_2d kernel, Place place) {
  return [=](int, int, int q, int k) {
    const pixel a = place(q), b = place(k);
    const int rx = kernel.x / 2, ry = kernel.y / 2;
    const int cx = std::min(std::max(a.x, rx), canvas.x - 1 - rx);
    const int cy = std::min(std::max(a.y, ry), canvas.y - 1 - ry);
    return std::abs(cx - b.x) <= rx && std::abs(cy - b.y) <= ry;
  };
}

// Looseness without a stride: whole, contiguous and zigzag.
template <class Mask, class Definition>
index_t unstrided_looseness(const audit_shape& shape, const Mask& mask, Definition definition) {
  const dense_mask truth{shape, definition};
  index_t loose = 0;
  for (int tile : {64, 128}) {
    const layout_audits counts = audit_layouts(mask, truth, tile, 4);
    loose += counts.whole.loose + counts.contiguous.loose + counts.zigzag.loose;
  }
  return loose;
}

} // namespace

TEST_CASE("neighbourhood, row by row") {
  for (auto [canvas, kernel] : {std::pair{extent_2d{31, 23}, extent_2d{7, 5}},
                                {extent_2d{32, 22}, extent_2d{5, 9}},
                                {extent_2d{24, 31}, extent_2d{4, 31}},
                                {extent_2d{1, 300}, extent_2d{1, 13}},
                                {extent_2d{16, 16}, extent_2d{1, 1}}}) {
    const audit_shape shape{1, 1, canvas.x * canvas.y, canvas.x * canvas.y};
    const mask::neighbourhood near{mask::row_order{canvas}, kernel};
    const auto definition = neighbours(canvas, kernel, [width = canvas.x](int i) {
      return pixel{i % width, i / width};
    });
    check_mask("neighbourhood", shape, near, definition, tightness::loose);
    CHECK(unstrided_looseness(shape, near, definition) == 0);
  }
}

TEST_CASE("neighbourhood, tile by tile") {
  for (auto [canvas, tile, kernel] :
       {std::tuple{extent_2d{32, 24}, extent_2d{8, 8}, extent_2d{7, 7}},
        {extent_2d{30, 28}, extent_2d{5, 7}, extent_2d{9, 5}},
        {extent_2d{24, 24}, extent_2d{24, 1}, extent_2d{3, 24}}}) {
    const audit_shape shape{1, 1, canvas.x * canvas.y, canvas.x * canvas.y};
    const mask::neighbourhood near{mask::tiled_order{canvas, tile}, kernel};
    const auto definition = neighbours(canvas, kernel, [canvas = canvas, tile = tile](int i) {
      const int number = i / (tile.x * tile.y), inner = i % (tile.x * tile.y);
      const int across = canvas.x / tile.x;
      return pixel{number % across * tile.x + inner % tile.x,
                   number / across * tile.y + inner / tile.x};
    });
    check_mask("tiled neighbourhood", shape, near, definition, tightness::loose);
    CHECK(unstrided_looseness(shape, near, definition) == 0);
  }
}

TEST_CASE("neighbourhood along the Z-curve") {
  for (auto [side, kernel] : {std::pair{32, extent_2d{7, 5}},
                              {16, extent_2d{3, 3}},
                              {8, extent_2d{8, 1}},
                              {1, extent_2d{1, 1}}}) {
    const extent_2d canvas{side, side};
    const audit_shape shape{1, 1, side * side, side * side};
    const mask::neighbourhood near{mask::morton_order{side}, kernel};
    const auto definition = neighbours(canvas, kernel, [](int i) {
      pixel p{0, 0};
      for (int bit = 0; bit < 16; ++bit) {
        p.x |= (i >> (2 * bit) & 1) << bit;
        p.y |= (i >> (2 * bit + 1) & 1) << bit;
      }
      return p;
    });
    check_mask("Morton neighbourhood", shape, near, definition, tightness::loose);
    CHECK(unstrided_looseness(shape, near, definition) == 0);
  }
}

TEST_CASE("the boxes of the Z-curve hold every index, however many there are") {
  const mask::morton_order order{1 << 15};
  for (auto [lo, hi] : {std::pair{1, (1 << 30) - 2}, {5, 1000003}, {0, (1 << 30) - 1}}) {
    const auto boxes = order.boxes({lo, hi});
    CHECK(boxes.count <= 24);
    for (int i : {lo, lo + 1, hi / 2 + 1, hi - 1, hi}) {
      const extent_2d p = order.place(i);
      bool found = false;
      for (int b = 0; b < boxes.count; ++b) {
        const auto& at = boxes.list[b].at;
        found = found || (at[0].lo <= p.x && p.x <= at[0].hi && at[1].lo <= p.y && p.y <= at[1].hi);
      }
      CHECK(found);
    }
  }
}

TEST_CASE("sliding tiles in two and three dimensions, with text") {
  const auto axis = [](int q, int k, int n, int w) {
    const int left = w / 2, right = w / 2 + (w % 2 - 1);
    const int c = std::min(std::max(q, left), n - 1 - right);
    return c - left <= k && k <= c + right;
  };
  const auto with_text = [](int picture, int text, auto near) {
    return [=](int b, int h, int q, int k) {
      if (q < picture && k < picture) return near(b, h, q, k);
      return k < picture + text;
    };
  };
  for (auto [nx, ny, wx, wy, tokens, text] : {std::tuple{5, 4, 3, 3, 32, 0},
                                              {6, 5, 2, 4, 21, 40},
                                              {4, 3, 4, 1, 64, 7},
                                              {3, 3, 1, 2, 50, 1}}) {
    const int picture = nx * ny * tokens;
    const auto near = [=, nx = nx, ny = ny, wx = wx, wy = wy, tokens = tokens](int, int, int q,
                                                                               int k) {
      const int a = q / tokens, b = k / tokens;
      return axis(a % nx, b % nx, nx, wx) && axis(a / nx, b / nx, ny, wy);
    };
    const mask::sliding_tile window{{nx, ny}, {wx, wy}, tokens, text};
    CHECK(window.picture() == picture);
    const audit_shape shape{1, 1, picture + text + 5, picture + text + 5};
    check_mask("sliding_tile 2-D", shape, window, with_text(picture, text, near), tightness::loose);
    CHECK(unstrided_looseness(shape, window, with_text(picture, text, near)) == 0);
  }
  for (auto [nx, ny, nt, wx, wy, wt, tokens, text] :
       {std::tuple{3, 3, 4, 3, 1, 2, 16, 0}, {2, 4, 3, 1, 3, 3, 27, 33}}) {
    const int picture = nx * ny * nt * tokens;
    const auto near = [=, nx = nx, ny = ny, nt = nt, wx = wx, wy = wy, wt = wt,
                       tokens = tokens](int, int, int q, int k) {
      const int a = q / tokens, b = k / tokens;
      return axis(a % nx, b % nx, nx, wx) && axis(a / nx % ny, b / nx % ny, ny, wy) &&
             axis(a / (nx * ny), b / (nx * ny), nt, wt);
    };
    const mask::sliding_tile window{{nx, ny, nt}, {wx, wy, wt}, tokens, text};
    const audit_shape shape{1, 1, picture + text + 3, picture + text + 3};
    check_mask("sliding_tile 3-D", shape, window, with_text(picture, text, near), tightness::loose);
    CHECK(unstrided_looseness(shape, window, with_text(picture, text, near)) == 0);
  }
}

TEST_CASE("video heads") {
  for (auto [p, w, t, round] :
       {std::tuple{20, 1.5, 60, 16}, {0, 0.3, 100, 1}, {150, 0.0, 64, 8}, {7, 9.0, 50, 128}}) {
    const int reach = static_cast<int>(std::floor(w * t / round)) * round;
    const auto definition = [p = p, reach](int, int, int q, int k) {
      return k < p || q < p || std::abs(q - k) < reach;
    };
    check_mask("spatial_head", {1, 1, 701, 701}, mask::spatial_head{p, w, t, round}, definition,
               tightness::loose);
    CHECK(unstrided_looseness({1, 1, 701, 701}, mask::spatial_head{p, w, t, round}, definition) ==
          0);
  }
  for (auto [p, w, t, f] :
       {std::tuple{20, 2.0, 60, 10}, {0, 3.0, 133, 11}, {150, 1.0, 640, 3}, {7, 0.0, 50, 4}}) {
    const int reach = static_cast<int>(w) * t / f;
    const auto definition = [p = p, t = t, reach](int, int, int q, int k) {
      return k < p || q < p || std::abs((q - p) % t - (k - p) % t) < reach;
    };
    check_mask("temporal_head", {1, 1, 701, 701}, mask::temporal_head{p, w, t, f}, definition,
               tightness::loose);
    CHECK(unstrided_looseness({1, 1, 701, 701}, mask::temporal_head{p, w, t, f}, definition) == 0);
  }
}

TEST_CASE("cross intervals") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random{seed};
  for (int tokens : {1, 17, 64, 300}) {
    constexpr int text = 389;
    const int images = (643 + tokens - 1) / tokens;
    std::vector<int> first, last;
    for (int i = 0; i < images; ++i) {
      first.push_back(static_cast<int>(random() % text));
      last.push_back(first.back() + static_cast<int>(random() % 200));
    }
    const mask::int_table begins{first, images}, ends{last, images};
    check_mask(
        "cross_intervals", {1, 1, text, 643},
        mask::cross_intervals{begins.view(), ends.view(), tokens},
        [&, tokens = tokens](int, int, int q, int k) {
          return first[static_cast<std::size_t>(k / tokens)] <= q &&
                 q < last[static_cast<std::size_t>(k / tokens)];
        },
        tightness::exact);
  }
}

TEST_CASE("tables of blocks, and lists of chosen blocks, for every batch entry and head") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random{seed};
  for (int block : {16, 64, 77}) {
    for (auto [batch, heads] : {std::pair{1, 1}, {2, 3}, {1, 3}, {2, 1}}) {
      constexpr int q_len = 389, kv_len = 643;
      const mask::block_table_shape shape{batch, heads, (q_len + block - 1) / block,
                                          (kv_len + block - 1) / block};
      std::vector<std::uint8_t> flags;
      for (index_t i = 0; i < shape.batch * shape.heads * shape.rows * shape.columns; ++i) {
        flags.push_back(random() % 3 != 0);
      }
      const auto at = [&, batch = batch, heads = heads, block = block](int b, int h, int q, int k) {
        const index_t layer = (batch == 1 ? 0 : b) * heads + (heads == 1 ? 0 : h);
        return ((layer * shape.rows + q / block) * shape.columns) + k / block;
      };
      const auto bits = mask::block_bits(shape, flags);
      check_mask(
          "block_table", {2, 3, q_len, kv_len},
          mask::block_table{bits.view(), shape, block}.require_covers(q_len, kv_len),
          [&](int b, int h, int q, int k) { return flags[at(b, h, q, k)] != 0; }, tightness::exact);

      constexpr int k = 3;
      std::vector<int> chosen;
      std::vector<std::uint8_t> listed(flags.size());
      for (index_t row = 0; row < shape.batch * shape.heads * shape.rows; ++row) {
        for (int i = 0; i < k; ++i) {
          chosen.push_back(static_cast<int>(random() % (shape.columns + 1)) - 1);
          if (chosen.back() >= 0) listed[row * shape.columns + chosen.back()] = 1;
        }
      }
      const auto picked = mask::topk_bits(shape, chosen, k);
      check_mask(
          "block_topk", {2, 3, q_len, kv_len}, mask::block_table{picked.view(), shape, block},
          [&](int b, int h, int q, int kv) { return listed[at(b, h, q, kv)] != 0; },
          tightness::exact);
    }
  }
}

TEST_CASE("pictures and tables refuse bad arguments") {
  CHECK_THROWS_WITH_AS(
      (mask::neighbourhood{mask::row_order{{8, 8}}, {9, 3}}),
      "maskring: neighbourhood: kernel is 9 x 3, expected at most the canvas 8 x 8",
      std::invalid_argument);
  CHECK_THROWS_AS((mask::neighbourhood{mask::row_order{{8, 8}}, {0, 3}}), std::invalid_argument);
  CHECK_THROWS_AS(mask::row_order({0, 8}), std::invalid_argument);
  CHECK_THROWS_AS(mask::tiled_order({8, 8}, {3, 8}), std::invalid_argument);
  CHECK_THROWS_AS(mask::morton_order{24}, std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      (mask::sliding_tile{{4, 4}, {5, 1}, 64}),
      "maskring: sliding_tile: window of axis 0 is 5, expected 1 to the axis' 4 tiles",
      std::invalid_argument);
  CHECK_THROWS_AS((mask::sliding_tile{{4, 4}, {1, 1}, 64, -1}), std::invalid_argument);
  CHECK_THROWS_AS((mask::sliding_tile{{1 << 14, 1 << 14}, {1, 1}, 64}), std::invalid_argument);
  CHECK_THROWS_AS(mask::spatial_head(-1, 1.0, 64), std::invalid_argument);
  CHECK_THROWS_AS(mask::spatial_head(0, -1.0, 64), std::invalid_argument);
  CHECK_THROWS_AS(mask::spatial_head(0, std::nan(""), 64), std::invalid_argument);
  CHECK_THROWS_AS(mask::temporal_head(0, 1.0, 64, 0), std::invalid_argument);
  const mask::int_table two{std::vector<int>{1, 2}, 2}, one{std::vector<int>{3}, 1};
  CHECK_THROWS_AS(mask::cross_intervals(two.view(), one.view(), 4), std::invalid_argument);
  CHECK_THROWS_AS(mask::cross_intervals(two.view(), two.view(), 0), std::invalid_argument);
  const mask::block_table_shape shape{1, 1, 2, 3};
  CHECK_THROWS_AS(mask::block_bits(shape, std::vector<std::uint8_t>(5)), std::invalid_argument);
  CHECK_THROWS_WITH_AS(mask::topk_bits(shape, std::vector<int>{0, 3}, 1),
                       "maskring: topk_bits: entry 1 is 3, expected -1 to 2",
                       std::invalid_argument);
  const auto bits = mask::block_bits(shape, std::vector<std::uint8_t>(6));
  CHECK_THROWS_AS(mask::block_table(bits.view(), shape, 0), std::invalid_argument);
  CHECK_THROWS_AS(mask::block_table(bits.view(), {1, 2, 2, 3}, 64), std::invalid_argument);
  CHECK_THROWS_AS(mask::block_table(bits.view(), shape, 64).require_covers(129, 192),
                  std::invalid_argument);
}
