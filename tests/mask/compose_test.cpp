// SPDX-License-Identifier: Apache-2.0
#include "check.hpp"

#include <maskring/mask/basic.hpp>
#include <maskring/mask/batched.hpp>
#include <maskring/mask/block_diffusion.hpp>
#include <maskring/mask/compose.hpp>
#include <maskring/mask/document.hpp>
#include <maskring/mask/tree.hpp>
#include <maskring/mask/window.hpp>

#include <vector>

using namespace maskring;
using namespace maskring::testing;

namespace {

// A user's mask: ints only, compared at run time.
struct users_own {
  int period;
  bool operator()(int, int h, int q, int kv) const {
    if (q % period == 0) return false;
    return (q + kv + h) % period != 1;
  }
  friend bool operator==(const users_own& a, const users_own& b) { return a.period == b.period; }
};

} // namespace

TEST_CASE("compositions compare as their parts do, at compile time where these can") {
  static_assert((mask::causal{} & mask::sliding_window{3}) ==
                (mask::causal{} & mask::sliding_window{3}));
  static_assert(
      !(mask::batched{mask::sliding_window{4}, 9} == mask::batched{mask::sliding_window{3}, 9}));
  CHECK((users_own{3} | mask::causal{}) == (users_own{3} | mask::causal{}));
  CHECK_FALSE((!(users_own{3} & mask::causal{})) == (!(users_own{4} & mask::causal{})));
  CHECK(mask::batched{users_own{3}, 9} == mask::batched{users_own{3}, 9});
}

TEST_CASE("masks in masks: every combination is what its parts say") {
  constexpr int tokens = 389;
  const auto docs = mask::document_table::from_lengths(std::vector<int>{100, 3, 0, 120, 166});
  std::vector<int> ids;
  for (auto [id, length] : {std::pair{0, 100}, {1, 3}, {3, 120}, {4, 166}}) {
    ids.insert(ids.end(), static_cast<std::size_t>(length), id);
  }
  const auto start = [&](int i) { return i < 100 ? 0 : i < 103 ? 100 : i < 223 ? 103 : 223; };
  const auto same = [&](int q, int k) { return ids[q] == ids[k]; };

  check_mask(
      "document of a sink window", {1, 1, tokens, tokens},
      mask::document{docs.view(), mask::attention_sink{30, 4}},
      [&](int, int, int q, int k) {
        return same(q, k) && k <= q && (q - k <= 30 || k - start(q) < 4);
      },
      tightness::exact);
  check_mask(
      "batched diffusion", {1, 1, tokens, tokens}, mask::batched{mask::block_diffusion{40, 8}, 80},
      [](int, int, int q, int k) {
        if (q / 80 != k / 80) return false;
        const int i = q % 80, j = k % 80;
        const int a = i % 40 / 8, b = j % 40 / 8;
        const bool noised_q = i < 40, noised_k = j < 40;
        return (a == b && noised_q == noised_k) || (a > b && noised_q && !noised_k) ||
               (a >= b && !noised_q && !noised_k);
      },
      tightness::exact);
  check_mask(
      "documents, or a window before them, but not far", {1, 1, tokens, tokens},
      (mask::document{docs.view()} | mask::shift{mask::sliding_window{9}, 20, 0}) &
          !mask::shift{mask::causal{}, -150, 0},
      [&](int, int, int q, int k) {
        const bool window = k <= q + 20 && q + 20 - k <= 9;
        return (same(q, k) || window) && !(q - 150 >= k);
      },
      tightness::loose);
  const shard::zigzag layout{tokens, 3};
  const users_own own{5};
  const auto local =
      shard::rewrite(own & mask::tree_training{20, 60}, layout.map(1), layout.map(2));
  int different = 0;
  for (int h = 0; h < 2; ++h) {
    for (int q = 0; q < layout.size(1); ++q) {
      for (int k = 0; k < layout.size(2); ++k) {
        const int i = layout.map(1)(q), j = layout.map(2)(k);
        const bool tree = j < 20 || (i / 60 == (j - 20) / 60 && (j - 20) % 60 <= i % 60);
        different += local(0, h, q, k) != (own(0, h, i, j) && tree);
      }
    }
  }
  CHECK(different == 0);
  static_assert(needs_elements<decltype(local)>);
}
