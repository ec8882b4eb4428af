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
                                                        {8, 128, 1, 128}}) {
    for (const int processors : {1, 14, 132}) {
      for (const bool followed : {false, true}) {
        const problem p = sizes(batch, q_heads, kv_heads, q_len);
        const auto order = work_order::make(p, {.q = 128, .kv = 128}, processors, followed);
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

TEST_CASE("heads that share keys go together, and the shortest tiles of all come last") {
  constexpr int heads = 16, group = 4, q_tiles = 64, processors = 32;
  const auto order = work_order::make(sizes(2, heads, heads / group, 128 * q_tiles),
                                      {.q = 128, .kv = 128}, processors, false);
  constexpr int late = 4 * processors / (2 * heads); // of each head
  constexpr int early = q_tiles - late;
  for (int i = 0; i < 2 * heads * early; ++i) {
    const work_item item = order.last_first(i);
    const int within = i % (group * early);
    CHECK((item.batch * heads + item.head) / group == i / (group * early));
    CHECK(item.q_tile == q_tiles - 1 - within / group);
  }
  for (int i = 2 * heads * early; i < order.count(); ++i) {
    CHECK(order.last_first(i).q_tile < late);
    CHECK(order.last_first(i).q_tile >=
          order.last_first(std::min(i + 1, order.count() - 1)).q_tile);
  }
}

TEST_CASE("where other calls follow, one group of heads comes after the other") {
  const auto order = work_order::make(sizes(1, 4, 2, 128 * 8), {.q = 128, .kv = 128}, 132, true);
  std::vector<int> groups;
  for (int i = 0; i < order.count(); ++i) groups.push_back(order.last_first(i).head / 2);
  CHECK(std::is_sorted(groups.begin(), groups.end()));
}

} // namespace maskring::testing
