// SPDX-License-Identifier: Apache-2.0
// The order in which forward kernels deal their query tiles out; on the host.
#include <maskring/cuda/detail/work_order.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <tuple>
#include <vector>

namespace maskring::testing {
namespace {

using cuda::detail::work_item;
using cuda::detail::work_order;

problem sizes(int batch, int q_heads, int kv_heads, int q_len) {
  problem p;
  p.batch = batch, p.q_heads = q_heads, p.kv_heads = kv_heads, p.q_len = p.kv_len = q_len;
  return p;
}

} // namespace

TEST_CASE("every query tile of every head is dealt out once") {
  for (const auto& [batch, q_heads, kv_heads, q_len] : {std::tuple{1, 1, 1, 1},
                                                        {1, 1, 1, 4096},
                                                        {2, 8, 8, 4096},
                                                        {2, 8, 2, 4096},
                                                        {3, 6, 2, 16384},
                                                        {4, 64, 8, 1000},
                                                        {1, 32, 32, 16384},
                                                        {8, 128, 1, 128},
                                                        {1, 0, 2, 4096}}) {
    for (const int processors : {1, 14, 132}) {
      for (const bool alike : {false, true}) {
        const problem p = sizes(batch, q_heads, kv_heads, q_len);
        const auto order = work_order::make(p, {.q = 128, .kv = 128}, processors, alike);
        std::set<std::tuple<int, int, int>> seen;
        for (int i = 0; i < order.count(); ++i) {
          const work_item item = order.last_first(i);
          const bool inside = item.batch >= 0 && item.batch < batch && item.head >= 0 &&
                              item.head < q_heads && item.q_tile >= 0 &&
                              item.q_tile < (q_len + 127) / 128;
          if (!inside) FAIL_CHECK("item " << i << " is outside");
          seen.emplace(item.batch, item.head, item.q_tile);
        }
        CHECK(seen.size() == static_cast<std::size_t>(batch * q_heads * ((q_len + 127) / 128)));
      }
    }
  }
}

TEST_CASE("few heads go together, and the shortest tiles of all come last") {
  constexpr int heads = 16, group = 4, q_tiles = 64, blocks = 300;
  const auto order = work_order::make(sizes(2, heads, heads / group, 128 * q_tiles),
                                      {.q = 128, .kv = 128}, blocks, false);
  constexpr int late = 10; // of each head: one item a block or more
  constexpr int early = q_tiles - late;
  // Each block's share is 6.8 query tiles, three of the longest; so three sections: 8, 12, 12.
  constexpr int section = 12, rest = 8;
  for (int i = 0; i < 2 * heads * early; ++i) {
    const work_item item = order.last_first(i);
    const bool leads = i < rest * early;
    const int first = leads ? 0 : rest + (i / early - rest) / section * section;
    const int within = i - first * early;
    const int width = leads ? rest : section;
    CHECK(item.batch * heads + item.head == first + within % width);
    CHECK(item.q_tile == q_tiles - 1 - within / width);
  }
  for (int i = 2 * heads * early; i < order.count(); ++i) {
    CHECK(order.last_first(i).q_tile < late);
    CHECK(order.last_first(i).q_tile >=
          order.last_first(std::min(i + 1, order.count() - 1)).q_tile);
  }
}

TEST_CASE("no section ends with the longest query tiles") {
  for (const int heads : {1, 3, 8, 16, 32, 64, 65}) {
    for (const int q_tiles : {1, 4, 32, 64, 128, 1000}) {
      constexpr int blocks = 132;
      const auto order = work_order::make(sizes(1, heads, heads, 128 * q_tiles),
                                          {.q = 128, .kv = 128}, blocks, false);
      // Whichever block is free first takes the next item, whose length is its number.
      std::vector<long> busy(blocks, 0);
      long all = 0;
      for (int i = 0; i < order.count(); ++i) {
        const long length = order.last_first(i).q_tile + 1;
        *std::min_element(busy.begin(), busy.end()) += length;
        all += length;
      }
      const long least = std::max<long>(q_tiles, (all + blocks - 1) / blocks);
      INFO(heads << " heads, " << q_tiles << " query tiles");
      CHECK(*std::max_element(busy.begin(), busy.end()) <= least + least / 8);
    }
  }
}

TEST_CASE("where query tiles are alike, one group of heads comes after the other") {
  const auto order = work_order::make(sizes(1, 4, 2, 128 * 8), {.q = 128, .kv = 128}, 132, true);
  std::vector<int> groups;
  for (int i = 0; i < order.count(); ++i) groups.push_back(order.last_first(i).head / 2);
  CHECK(std::is_sorted(groups.begin(), groups.end()));
}

} // namespace maskring::testing
