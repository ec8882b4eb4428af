// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <maskring/block/build.hpp>
#include <maskring/block/cache.hpp>
#include <maskring/block/text.hpp>
#include <maskring/mask/basic.hpp>
#include <maskring/mask/compose.hpp>
#include <maskring/mask/document.hpp>
#include <maskring/shard/rewrite.hpp>

#include <random>
#include <vector>

using namespace maskring;

namespace {

struct scattered { // no structure, different for every head
  bool operator()(int b, int h, int q, int kv) const {
    return ((q / 5) * 31 + (kv / 7) * 17 + h * 13 + b * 7) % 5 == 0;
  }
};
struct per_head_window {
  constexpr auto operator()(auto, auto h, auto q, auto kv) const {
    return within(q - kv, 0, h * 10);
  }
};

int kind_at(const tile_rows& rows, index_t row, int tile) {
  for (const tile_run* run = rows.begin(row); run != rows.end(row); ++run) {
    if (tile >= run->first && tile < run->end()) return 1 + run->partial();
  }
  return 0;
}

// Every tile of the map against looking at all its pairs, in rows and in columns.
template <class Mask>
void check_map(const Mask& mask, const map_shape& shape, tile_shape tile) {
  const block_map map = make_block_map(mask, shape, tile);
  const block_map_view& view = map.view();
  for (int b = 0; b < shape.batch; ++b) {
    for (int h = 0; h < shape.heads; ++h) {
      for (int i = 0; i < view.q_tiles(); ++i) {
        for (int j = 0; j < view.kv_tiles(); ++j) {
          const index_t end = tile.from_end ? shape.q_len - (view.q_tiles() - 1 - i) * tile.q
                                            : std::min<index_t>((i + 1) * tile.q, shape.q_len);
          const index_t begin = tile.from_end ? std::max<index_t>(end - tile.q, 0) : i * tile.q;
          const verdict truth = elementwise_verdict(
              mask, b, h, {begin, end - 1}, detail::tile_span(j, j + 1, tile.kv, shape.kv_len));
          const int expected = truth == verdict::none ? 0 : truth == verdict::all ? 1 : 2;
          REQUIRE(kind_at(view.rows, view.row(b, h, i), j) == expected);
          REQUIRE(kind_at(view.columns, view.column(b, h, j), i) == expected);
        }
      }
    }
  }
  for (const auto* side : {&map.rows(), &map.columns()}) {
    for (std::size_t row = 0; row + 1 < side->offsets.size(); ++row) {
      for (auto at = side->offsets[row]; at < side->offsets[row + 1]; ++at) {
        const tile_run run = side->runs[static_cast<std::size_t>(at)];
        CHECK(run.count() > 0);
        if (at > side->offsets[row]) { // ascending, and merged wherever neighbours are alike
          const tile_run before = side->runs[static_cast<std::size_t>(at) - 1];
          CHECK(before.end() <= run.first);
          CHECK((before.end() < run.first || before.partial() != run.partial()));
        }
      }
    }
  }
}

} // namespace

TEST_CASE("block maps agree with a look at every pair") {
  const auto table = mask::document_table::from_lengths(std::vector<int>{30, 1, 0, 64, 100, 22});
  for (tile_shape tile : {tile_shape{16, 16}, tile_shape{8, 32}, tile_shape{64, 24},
                          tile_shape{16, 16, true}, tile_shape{48, 32, true}}) {
    for (index_t q_len : {1, 64, 217}) {
      for (index_t kv_len : {1, 96, 217}) {
        const map_shape shape{1, 1, q_len, kv_len};
        check_map(mask::full{}, shape, tile);
        check_map(mask::causal{}, shape, tile);
        check_map(!mask::causal{}, shape, tile);
        check_map(mask::sliding_window{20}, shape, tile);
        check_map(mask::prefix_lm{37}, shape, tile);
        check_map(mask::document{table.view(), mask::causal{}}, shape, tile);
        check_map(mask::document{table.view()}, shape, tile);
        check_map(mask::causal{} & scattered{}, shape, tile);
      }
    }
  }
}

TEST_CASE("maps of masks that differ between heads have a layer for each, others share one") {
  const map_shape shape{2, 3, 70, 90};
  const tile_shape tile{16, 16};
  check_map(scattered{}, shape, tile);
  check_map(per_head_window{}, shape, tile);
  check_map(mask::causal{}, shape, tile);
  CHECK(make_block_map(mask::causal{}, shape, tile).view().heads == 1);
  CHECK(make_block_map(per_head_window{}, shape, tile).view().heads == 3);
  CHECK(make_block_map(per_head_window{}, shape, tile).view().batch == 1);
  CHECK(make_block_map(scattered{}, shape, tile).view().batch == 2);
  CHECK(make_block_map(mask::uniform{scattered{}}, shape, tile).view().batch == 1);
}

TEST_CASE("maps of rewritten masks keep the caller's tile") {
  const shard::zigzag layout{300, 3};
  for (int rank = 0; rank < 3; ++rank) {
    check_map(
        shard::rewrite(mask::sliding_window{60}, layout.map(rank), layout.map((rank + 1) % 3)),
        {1, 1, layout.size(rank), layout.size((rank + 1) % 3)}, {16, 32});
  }
}

TEST_CASE("empty sequences have empty maps") {
  for (const map_shape& shape :
       {map_shape{1, 1, 0, 10}, map_shape{1, 1, 10, 0}, map_shape{0, 0, 10, 10}}) {
    const block_map map = make_block_map(mask::causal{}, shape, {16, 16});
    CHECK(map.rows().runs.empty());
    CHECK(map.columns().runs.empty());
    CHECK(map.view().batch == 1);
  }
}

TEST_CASE("counts, sparsity and text") {
  const block_map map = make_block_map(mask::causal{}, {1, 1, 512, 512}, {128, 128});
  CHECK(map.count(verdict::all) == 6);
  CHECK(map.count(verdict::some) == 4);
  CHECK(map.count(verdict::none) == 6);
  CHECK(map.sparsity() == doctest::Approx(37.5));
  CHECK(to_string(map) == "+...\n#+..\n##+.\n###+\n");
  CHECK(to_string(map, 0, 0, 2) == "+.\n#+\n");
}

TEST_CASE("the map of a million tokens is as large as its border, not its area") {
  const map_shape million{1, 1, 1 << 20, 1 << 20};
  CHECK(make_block_map(mask::causal{}, million).bytes() < 2'000'000);
  CHECK(make_block_map(mask::sliding_window{4096}, million).bytes() < 2'000'000);
  CHECK(make_block_map(mask::causal{}, million).count(verdict::all) == 8192LL * 8191 / 2);
}

TEST_CASE("the cache returns the same object for the same request") {
  block_map_cache<mask::sliding_window> cache{2};
  const map_shape shape{1, 1, 256, 256};
  const auto first = cache.get(mask::sliding_window{5}, shape);
  CHECK(cache.get(mask::sliding_window{5}, shape) == first);
  CHECK(cache.get(mask::sliding_window{6}, shape) != first);
  CHECK(cache.get(mask::sliding_window{5}, shape, {64, 64}) != first); // evicts the oldest
  CHECK(cache.get(mask::sliding_window{5}, shape) != first);
  CHECK(make_block_map_cached(mask::causal{}, shape) ==
        make_block_map_cached(mask::causal{}, shape));

  const auto a = mask::document_table::from_lengths(std::vector<int>{256});
  const auto b = mask::document_table::from_lengths(std::vector<int>{128, 128});
  CHECK(make_block_map_cached(mask::document{a.view()}, shape) !=
        make_block_map_cached(mask::document{b.view()}, shape));
  CHECK(make_block_map_cached(scattered{}, shape) == make_block_map_cached(scattered{}, shape));
}

TEST_CASE("sizes that make no map are refused") {
  CHECK_THROWS_AS(make_block_map(mask::full{}, {1, 1, -1, 4}), std::invalid_argument);
  CHECK_THROWS_AS(make_block_map(mask::full{}, {1, 1, 4, 4}, {0, 4}), std::invalid_argument);
}
