// SPDX-License-Identifier: Apache-2.0
// The device finds rows and columns by separate descents: they must agree on every tile.
#include <doctest/doctest.h>

#include <maskring/block/build.hpp>
#include <maskring/mask/basic.hpp>
#include <maskring/mask/batched.hpp>
#include <maskring/mask/block_diffusion.hpp>
#include <maskring/mask/compose.hpp>
#include <maskring/mask/document.hpp>
#include <maskring/mask/lengths.hpp>
#include <maskring/mask/neighbourhood.hpp>
#include <maskring/mask/shared_prefix.hpp>
#include <maskring/mask/sliding_tile.hpp>
#include <maskring/mask/tree.hpp>
#include <maskring/mask/video_heads.hpp>
#include <maskring/mask/window.hpp>
#include <maskring/shard/rewrite.hpp>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

using namespace maskring;

namespace {

template <mask_mod Mask>
struct transposed {
  Mask mask;
  constexpr bool operator()(int b, int h, int q, int kv) const {
    return static_cast<bool>(mask(b, h, kv, q));
  }
  constexpr kleene operator()(range b, range h, range q, range kv) const {
    return ask(mask, b, h, kv, q);
  }
};

template <class Mask>
void check_part(const Mask& mask, index_t q_len, index_t kv_len) {
  for (const tile_shape tile : {tile_shape{16, 16}, {8, 32}, {24, 64}, {128, 128}}) {
    const block_map map = make_block_map(mask, {2, 2, q_len, kv_len}, tile);
    const block_map turned =
        make_block_map(transposed<Mask>{mask}, {2, 2, kv_len, q_len}, {tile.kv, tile.q});
    CHECK(map.rows().runs == turned.columns().runs);
    CHECK(map.columns().runs == turned.rows().runs);
    CHECK(map.rows().offsets == turned.columns().offsets);
    CHECK(map.columns().offsets == turned.rows().offsets);
  }
}

template <class Mask>
void check_mask(const std::string& name, const Mask& mask, index_t length) {
  const auto check_layout = [&](const auto& layout) {
    for (int rank = 0; rank < layout.ranks(); ++rank) {
      INFO(name << ", " << layout.name << ", rank " << rank);
      for (int other = 0; other < layout.ranks(); ++other) {
        check_part(shard::rewrite(mask, layout.map(rank), layout.map(other)), layout.size(rank),
                   layout.size(other));
      }
      check_part(shard::rewrite(mask, layout.map(rank), shard::whole{}), layout.size(rank), length);
    }
  };
  INFO(name);
  check_part(mask, length, length);
  check_layout(shard::contiguous{length, 3});
  check_layout(shard::zigzag{length, 3});
  check_layout(shard::striped{length, 3});
  check_layout(shard::striped{length, 4});
}

} // namespace

TEST_CASE("descents by rows and by columns find the same tiles") {
  constexpr index_t n = 701;
  check_mask("causal", mask::causal{}, n);
  check_mask("window", mask::sliding_window{50}, n);
  check_mask("window or prefix", mask::sliding_window{50} | mask::prefix_lm{77}, n);
  check_mask("attention_sink", mask::attention_sink{40, 9}, n);
  for (int dilation : {2, 7, 16, 48}) {
    check_mask("dilated_window", mask::dilated_window{300, dilation}, n);
  }
  for (int length : {5, 50, 64}) check_mask("batched", mask::batched{mask::causal{}, length}, n);
  for (int block : {1, 32, 400})
    check_mask("block_diffusion", mask::block_diffusion{350, block}, n);
  check_mask("neighbourhood", mask::neighbourhood{mask::row_order{{31, 23}}, {7, 5}}, 713);
  check_mask("tiled neighbourhood",
             mask::neighbourhood{mask::tiled_order{{30, 28}, {5, 7}}, {9, 5}}, 840);
  check_mask("Morton neighbourhood", mask::neighbourhood{mask::morton_order{32}, {7, 5}}, 1024);
  check_mask("sliding_tile", mask::sliding_tile<2>{{6, 5}, {2, 4}, 21, 40}, 670);
  check_mask("sliding_tile 3-D", mask::sliding_tile<3>{{2, 4, 3}, {1, 3, 3}, 27, 33}, 684);
  check_mask("spatial_head", mask::spatial_head{20, 1.5, 60, 16}, n);
  check_mask("temporal_head", mask::temporal_head{20, 2.0, 60, 10}, n);
  check_mask("tree_training", mask::tree_training{100, 50}, n);
}

TEST_CASE("descents by rows and by columns find the same tiles of masks that read tables") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random{seed};
  std::vector<int> lengths;
  index_t n = 0;
  while (n < 700) n += lengths.emplace_back(static_cast<int>(random() % 90));
  const auto docs = mask::document_table::from_lengths(lengths);
  check_mask("document", mask::document{docs.view(), mask::causal{}}, n);
  check_mask("document, window", mask::document{docs.view(), mask::sliding_window{5}}, n);

  const auto table = [&](std::size_t size, auto entry) {
    std::vector<int> values(size);
    std::generate(values.begin(), values.end(), entry);
    return mask::int_table{values, static_cast<index_t>(size)};
  };
  const auto prefix =
      table(lengths.size(), [&] { return static_cast<int>(random() % lengths.size()); });
  check_mask("shared_prefix", mask::shared_prefix{docs.view(), prefix.view()}, n);
  const auto flags = table(static_cast<std::size_t>(n), [&] { return random() % 50 == 0 ? 1 : 0; });
  check_mask("global_window", mask::global_window{20, flags.view()}, n);
  const auto ids =
      table(static_cast<std::size_t>(n), [&] { return static_cast<int>(random() % 5); });
  check_mask("same_id", mask::same_id{ids.view()}, n);
  const auto padding = table(2, [&] { return static_cast<int>(random() % 700); });
  check_mask("key_padding", mask::key_padding{padding.view()}, n);

  std::vector<int> parents{-1};
  while (parents.size() < 389) {
    const int i = static_cast<int>(parents.size());
    parents.push_back(static_cast<int>(random() % std::min(i, 9)) + std::max(0, i - 9));
  }
  const auto ancestors = mask::ancestors(parents);
  check_mask("tree", mask::tree{300, ancestors.view()}, 689);
}
