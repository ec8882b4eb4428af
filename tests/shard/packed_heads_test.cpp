// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "support/random_masks.hpp"
#include "support/tensor.hpp"

#include <maskring/mask/basic.hpp>
#include <maskring/mask/compose.hpp>
#include <maskring/shard/packed_heads.hpp>

#include <set>

using namespace maskring;
using namespace maskring::testing;

namespace {

/// A window whose width differs between heads.
struct head_window {
  constexpr auto operator()(auto, auto h, auto q, auto kv) const {
    return within(q - kv, 0, 3 * h);
  }
};

/// The mask as rows of key head `kv_head` alone, whose verdicts can be checked.
template <class Mask>
struct of_head {
  Mask mask;
  int kv_head;
  constexpr bool operator()(int b, int, int row, int kv) const { return mask(b, kv_head, row, kv); }
  constexpr kleene operator()(range b, range, range row, range kv) const {
    return mask(b, range{kv_head}, row, kv);
  }
};

template <class Mask>
void check_mask(const Mask& mask, unsigned seed) {
  std::mt19937 random{seed};
  for (int group : {1, 2, 3, 8}) {
    for (int q_len : {1, 2, 7, 16}) {
      for (const shard::packed_rows rows :
           {shard::packed_rows{group, group, false}, shard::packed_rows{group, q_len, true}}) {
        CAPTURE(seed);
        CAPTURE(group);
        CAPTURE(q_len);
        CAPTURE(rows.heads_outer);
        const shard::packed_mask packed{mask, rows};
        for (int kv_head : {0, 1}) {
          std::set<std::pair<int, int>> places;
          for (int row = 0; row < group * q_len; ++row) {
            const int head = rows.head(kv_head, row), q = rows.query(row);
            CHECK(head / group == kv_head);
            CHECK(q < q_len);
            places.emplace(head, q);
            for (int kv : {0, 1, q, 20}) {
              CHECK(packed(0, kv_head, row, kv) == static_cast<bool>(mask(0, head, q, kv)));
            }
          }
          CHECK(static_cast<int>(places.size()) == group * q_len);
          check_verdicts(of_head<shard::packed_mask<Mask>>{packed, kv_head}, group * q_len, 29,
                         random);
        }
      }
    }
  }
}

} // namespace

TEST_CASE("packed heads: rows are heads and queries, verdicts hold for all their rows") {
  const unsigned seed = std::random_device{}();
  check_mask(mask::causal{}, seed);
  check_mask(mask::sliding_window{4}, seed);
  check_mask(head_window{}, seed);
  check_mask(mask::prefix_lm{3} & head_window{}, seed);
}

TEST_CASE("packed heads: each row of packed tensors is the row of its head and query") {
  constexpr int batch = 2, group = 4, q_len = 5, dim = 8;
  for (layout order : {layout::dense, layout::swapped}) {
    // Heads between the queries of one must be those that share its keys.
    const int kv_heads = order == layout::dense ? 3 : 1;
    std::mt19937_64 random{1};
    const auto q = random_tensor<float, 4>(random, {batch, kv_heads * group, q_len, dim}, order);
    const auto k = random_tensor<float, 4>(random, {batch, kv_heads, 9, dim}, order);
    tensor<float, 4> out{{batch, kv_heads * group, q_len, dim}, order};
    const inputs<float> in{*q, *k, *k};
    const results<float> to{*out};
    problem p;
    p.batch = batch, p.q_heads = kv_heads * group, p.kv_heads = kv_heads, p.q_len = q_len;
    const auto rows = shard::packable(in, to, p);
    REQUIRE(rows.has_value());
    CHECK(rows->heads_outer == (order == layout::dense));
    const auto packed = shard::pack(in, *rows);
    CHECK(packed.q.extent(1) == kv_heads);
    CHECK(packed.q.extent(2) == group * q_len);
    for (int head = 0; head < kv_heads; ++head) {
      for (int row = 0; row < group * q_len; ++row) {
        CHECK(&packed.q(1, head, row, 3) == &in.q(1, rows->head(head, row), rows->query(row), 3));
      }
    }
  }
  // Queries of one order and results of the other have no order in common.
  std::mt19937_64 random{1};
  const auto q = random_tensor<float, 4>(random, {1, 4, 5, 8}, layout::dense);
  tensor<float, 4> out{{1, 4, 5, 8}, layout::swapped};
  problem p;
  p.batch = 1, p.q_heads = 4, p.kv_heads = 2, p.q_len = 5;
  CHECK(!shard::packable(inputs<float>{*q, *q, *q}, results<float>{*out}, p));
}
