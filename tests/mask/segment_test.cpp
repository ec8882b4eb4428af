// SPDX-License-Identifier: Apache-2.0
#include "check.hpp"

#include <maskring/mask/batched.hpp>
#include <maskring/mask/block_diffusion.hpp>
#include <maskring/mask/document.hpp>
#include <maskring/mask/shared_prefix.hpp>
#include <maskring/mask/tree.hpp>

#include <algorithm>
#include <random>
#include <tuple>
#include <vector>

using namespace maskring;
using namespace maskring::testing;

namespace {

std::vector<int> random_lengths(std::mt19937& random, int tokens, int longest) {
  std::vector<int> lengths;
  for (int left = tokens; left > 0;) {
    lengths.push_back(
        std::min(left, static_cast<int>(random() % static_cast<unsigned>(longest + 1))));
    left -= lengths.back();
  }
  return lengths;
}

std::vector<int> ids_of(const std::vector<int>& lengths) {
  std::vector<int> ids;
  for (std::size_t d = 0; d < lengths.size(); ++d)
    ids.insert(ids.end(), lengths[d], static_cast<int>(d));
  return ids;
}

} // namespace

TEST_CASE("documents, plain and with an inner mask") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random{seed};
  constexpr int tokens = 701;
  for (int longest : {3, 60, 400}) {
    const auto lengths = random_lengths(random, tokens, longest);
    const auto ids = ids_of(lengths);
    const auto table = mask::document_table::from_lengths(lengths);
    table.require_covers(tokens);
    const auto start = [&](int i) {
      while (i > 0 && ids[i - 1] == ids[i]) --i;
      return i;
    };
    check_mask(
        "document", {1, 1, tokens, tokens}, mask::document{table.view()},
        [&](int, int, int q, int k) { return ids[q] == ids[k]; }, tightness::exact);
    check_mask(
        "document causal", {1, 1, tokens, tokens}, mask::document{table.view(), mask::causal{}},
        [&](int, int, int q, int k) { return ids[q] == ids[k] && k <= q; }, tightness::exact);
    check_mask(
        "document prefix", {1, 1, tokens, tokens}, mask::document{table.view(), mask::prefix_lm{9}},
        [&](int, int, int q, int k) { return ids[q] == ids[k] && (k <= q || k - start(q) < 9); },
        tightness::exact);
  }
}

TEST_CASE("batched") {
  for (int n : {1, 3, 50, 64, 200, 1000}) {
    check_mask(
        "batched full", {1, 1, 701, 645}, mask::batched{mask::full{}, n},
        [n](int, int, int q, int k) { return q / n == k / n; }, tightness::exact);
    check_mask(
        "batched causal", {1, 1, 645, 701}, mask::batched{mask::causal{}, n},
        [n](int, int, int q, int k) { return q / n == k / n && k % n <= q % n; }, tightness::exact);
    check_mask(
        "batched window", {1, 1, 701, 701}, mask::batched{mask::sliding_window{7}, n},
        [n](int, int, int q, int k) { return q / n == k / n && k <= q && q - k <= 7; },
        tightness::exact);
  }
}

TEST_CASE("shared prefix") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random{seed};
  constexpr int tokens = 701;
  for (int longest : {3, 60, 400}) {
    const auto lengths = random_lengths(random, tokens, longest);
    const int documents = static_cast<int>(lengths.size());
    const auto ids = ids_of(lengths);
    const auto docs = mask::document_table::from_lengths(lengths);
    std::vector<int> starts{0};
    for (int length : lengths) starts.push_back(starts.back() + length);
    // Groups of five continue the first of them, or anything does.
    for (bool orderly : {true, false}) {
      std::vector<int> prefix;
      for (int d = 0; d < documents; ++d) {
        prefix.push_back(orderly ? d / 5 * 5 : static_cast<int>(random() % lengths.size()));
      }
      const mask::int_table table{prefix, documents};
      check_mask(
          "shared_prefix", {1, 1, tokens, tokens}, mask::shared_prefix{docs.view(), table.view()},
          [&](int, int, int q, int k) {
            const int d = ids[q], p = prefix[d];
            return (k >= starts[d] && q >= k) || (d != p && starts[p] <= k && k < starts[p + 1]);
          },
          tightness::exact);
    }
  }
  const auto docs = mask::document_table::from_lengths(std::vector<int>{4, 4});
  const mask::int_table few{std::vector<int>{0}, 1}, wrong{std::vector<int>{0, 2}, 2};
  CHECK_THROWS_WITH_AS(mask::shared_prefix(docs.view(), few.view()),
                       "maskring: shared_prefix: prefix has 1 entries, expected 2",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(mask::shared_prefix(docs.view(), wrong.view()),
                       "maskring: shared_prefix: the greatest prefix is 2, expected less than 2",
                       std::invalid_argument);
}

TEST_CASE("block diffusion") {
  for (auto [s, l] : {std::pair{350, 32}, {351, 16}, {350, 3}, {300, 1}, {97, 400}}) {
    check_mask(
        "block_diffusion", {1, 1, 2 * s, 2 * s}, mask::block_diffusion{s, l},
        [s = s, l = l](int, int, int q, int k) {
          const bool qn = q < s, kn = k < s;
          const int bq = q % s / l, bk = k % s / l;
          return (bq == bk && qn == kn) || (bq > bk && qn && !kn) || (bq >= bk && !qn && !kn);
        },
        tightness::exact);
  }
}

TEST_CASE("trees: drafted tokens and branches to train on") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random{seed};
  for (int nodes : {1, 61, 389}) {
    std::vector<int> parents;
    for (int i = 0; i < nodes; ++i) {
      parents.push_back(i == 0 ? -1
                               : static_cast<int>(random() % std::min(i, 9)) + std::max(0, i - 9));
    }
    const auto matrix = mask::ancestors(parents);
    for (int prefix : {0, 5, 300}) {
      check_mask(
          "tree", {1, 1, nodes, prefix + nodes + 3}, mask::tree{prefix, matrix.view()},
          [&](int, int, int q, int k) {
            if (k < prefix) return true;
            for (int a = q; a >= 0; a = parents[static_cast<std::size_t>(a)]) {
              if (k - prefix == a) return true;
            }
            return false;
          },
          tightness::exact);
    }
  }
  for (auto [p, n] : {std::pair{100, 50}, {0, 64}, {130, 3}, {64, 1}, {10, 4000}}) {
    check_mask(
        "tree_training", {1, 1, 601, 601 + p}, mask::tree_training{p, n},
        [p = p, n = n](int, int, int q, int k) {
          return k < p || (k >= p && q / n == (k - p) / n && (k - p) % n <= q % n);
        },
        tightness::exact);
  }
}

TEST_CASE("segments, diffusion and trees refuse bad arguments") {
  CHECK_THROWS_AS(mask::batched(mask::causal{}, 0), std::invalid_argument);
  CHECK_THROWS_AS(mask::block_diffusion(0, 4), std::invalid_argument);
  CHECK_THROWS_AS(mask::block_diffusion(4, 0), std::invalid_argument);
  CHECK_THROWS_AS(mask::tree_training(-1, 4), std::invalid_argument);
  CHECK_THROWS_AS(mask::tree_training(0, 0), std::invalid_argument);
  CHECK_THROWS_WITH_AS(mask::ancestors(std::vector<int>{-1, 2}),
                       "maskring: ancestors: parent of node 1 is 2, expected -1 to 1",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(mask::ancestors(std::vector<int>{1, 0}),
                       "maskring: ancestors: node 0 is its own ancestor, expected a tree",
                       std::invalid_argument);
  const mask::bit_matrix oblong{2, 3, [](auto) {}};
  CHECK_THROWS_AS(mask::tree(0, oblong.view()), std::invalid_argument);
}
