// SPDX-License-Identifier: Apache-2.0
#include "../../examples/support/any_layout.hpp"
#include "../../examples/support/any_mask.hpp"

#include <maskring/cp/detail/gathered.hpp>
#include <maskring/cp/plan.hpp>

#include <doctest/doctest.h>

#include <random>
#include <set>

namespace {

using namespace maskring;
using cp::detail::gathered_keys;

/// What a rank needs, shard by shard.
template <class Layout>
std::vector<std::vector<cp::detail::stretch>> needed_by(int rank, const cp::plan& plan,
                                                        const Layout& layout) {
  std::vector<std::vector<cp::detail::stretch>> out;
  for (int shard = 0; shard < plan.ranks(); ++shard) {
    out.push_back(cp::detail::stretches_of(layout.map(shard), plan.needed(rank, shard)));
  }
  return out;
}

} // namespace

TEST_CASE("gathered keys: every needed key has a place of its own, in global order") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(static_cast<unsigned>(seed));
  for (const char* name :
       {"full", "causal", "sliding_window:20", "document", "attention_sink:9:2"}) {
    for (const char* layout : {"contiguous", "zigzag", "striped"}) {
      CAPTURE(name);
      CAPTURE(layout);
      const int ranks = 1 + static_cast<int>(random() % 6);
      const int tokens = static_cast<int>(random() % 300);
      CAPTURE(ranks);
      CAPTURE(tokens);
      examples::mask_library library{{1, 1, std::max(tokens, 1), std::max(tokens, 1)}};
      const examples::any_layout split{layout, tokens, ranks};
      const cp::plan plan{library(name), {1, 1, 1, 8, 8}, cp::shards{split}};
      for (int rank = 0; rank < ranks; ++rank) {
        const gathered_keys keys{needed_by(rank, plan, split)};
        std::set<index_t> global, places;
        for (int shard = 0; shard < ranks; ++shard) {
          const cp::interval part = plan.needed(rank, shard);
          for (index_t i = part.lo; i < part.hi; ++i) {
            global.insert(split.map(shard)(static_cast<int>(i)));
          }
        }
        index_t before = -1;
        for (const index_t key : global) {
          const index_t place = keys.place(key);
          CHECK(place > before);
          CHECK(place < keys.size());
          CHECK(keys.map()(static_cast<int>(place)) == key);
          before = place;
        }
        CHECK(keys.size() >= static_cast<index_t>(global.size()));
      }
    }
  }
}

TEST_CASE("gathered keys: two chunks of a zigzag under a window leave out what lies between") {
  const shard::zigzag split{8000, 4};
  const cp::plan plan{mask::sliding_window{100}, {1, 1, 1, 8, 8}, cp::shards{split}};
  CHECK(gathered_keys{needed_by(0, plan, split)}.size() == 1000 + 1100);
  CHECK(gathered_keys{needed_by(1, plan, split)}.size() == 2 * 1100);
  CHECK(gathered_keys{needed_by(3, plan, split)}.size() == 2100); // neighbours
}
