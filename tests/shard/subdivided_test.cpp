// SPDX-License-Identifier: Apache-2.0
#include <maskring/shard/subdivided.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

using namespace maskring;

TEST_CASE("subdivided: every token is held once, pieces of a shard by neighbours in order") {
  for (int tokens : {0, 1, 7, 24, 61}) {
    for (int shards : {1, 2, 5}) {
      for (int parts : {1, 2, 3}) {
        const shard::zigzag outer{tokens, shards};
        const shard::subdivided layout{outer, parts};
        static_assert(shard::layout<shard::subdivided<shard::zigzag>>);
        CHECK(layout.sequence() == tokens);
        CHECK(layout.ranks() == shards * parts);
        std::vector<int> held;
        for (int shard = 0; shard < shards; ++shard) {
          index_t before = 0;
          for (int part = 0; part < parts; ++part) {
            const int rank = shard * parts + part;
            const auto map = layout.map(rank);
            for (int i = 0; i < layout.size(rank); ++i) {
              CHECK(map(i) == outer.map(shard)(static_cast<int>(before) + i));
              held.push_back(map(i));
            }
            before += layout.size(rank);
          }
          CHECK(before == outer.size(shard));
        }
        std::sort(held.begin(), held.end());
        for (int i = 0; i < tokens; ++i) CHECK(held[static_cast<std::size_t>(i)] == i);
        CHECK(held.size() == static_cast<std::size_t>(tokens));
      }
    }
  }
  CHECK_THROWS_AS((shard::subdivided{shard::zigzag{8, 2}, 0}), std::invalid_argument);
}
