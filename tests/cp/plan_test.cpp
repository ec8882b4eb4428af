// SPDX-License-Identifier: Apache-2.0
#include "../../examples/support/any_layout.hpp"
#include "../../examples/support/any_mask.hpp"

#include <maskring/cp/detail/schedule.hpp>
#include <maskring/cp/detail/tile_schedule.hpp>
#include <maskring/cp/plan.hpp>

#include <doctest/doctest.h>

#include <random>

namespace {

using namespace maskring;
using cp::interval;
using examples::any_layout;

constexpr const char* layouts[] = {"contiguous", "zigzag", "striped"};

/// The keys that a rank needs of a shard and the queries that see them, found by looking at every
/// pair.
template <class Mask, class Q, class Kv>
std::pair<interval, interval> brute_needed(const Mask& mask, const cp::shape& s,
                                           const cp::shards<Q, Kv>& split, int rank, int shard) {
  interval keys, queries;
  for (int b = 0; b < s.batch; ++b) {
    for (int h = 0; h < s.q_heads; ++h) {
      for (int q = 0; q < split.q.size(rank); ++q) {
        for (int kv = 0; kv < split.kv.size(shard); ++kv) {
          if (mask(b, h, split.q.map(rank)(q), split.kv.map(shard)(kv))) {
            keys = hull(keys, interval{kv, kv + 1});
            queries = hull(queries, interval{q, q + 1});
          }
        }
      }
    }
  }
  return {keys, queries};
}

/// Needed keys hold those that are seen, and are no more where `exact`; the road holds what is
/// needed further on, and no more.
template <class Mask, class Q, class Kv>
void check_plan(const Mask& mask, const cp::shape& s, const cp::shards<Q, Kv>& split, bool exact) {
  const cp::plan plan{mask, s, split};
  const int ranks = split.q.ranks();
  REQUIRE(plan.ranks() == ranks);
  for (int shard = 0; shard < ranks; ++shard) {
    for (int rank = 0; rank < ranks; ++rank) {
      CAPTURE(rank);
      CAPTURE(shard);
      const auto [seen, seeing] = brute_needed(mask, s, split, rank, shard);
      const interval needed = plan.needed(rank, shard), queries = plan.queries(rank, shard);
      REQUIRE(needed.contains(seen));
      REQUIRE(queries.contains(seeing));
      REQUIRE(interval{0, plan.kv_size(shard)}.contains(needed));
      REQUIRE(interval{0, plan.q_size(rank)}.contains(queries));
      REQUIRE(needed.empty() == queries.empty());
      if (!exact) continue;
      REQUIRE(needed.size() == seen.size());
      REQUIRE(queries.size() == seeing.size());
    }
    for (int step = 1; step < ranks; ++step) {
      const int rank = (shard + step) % ranks, source = plan.source(rank, shard);
      REQUIRE(plan.shard_at(rank, step) == shard);
      if (source == shard) continue;
      // It holds the shard one step earlier.
      REQUIRE(source == (shard + step - 1) % ranks);
      REQUIRE(plan.needed(source, shard).contains(plan.needed(rank, shard)));
    }
  }
}

/// Each tile begins once and ends once, continues between, and has no part elsewhere; queries that
/// need keys have a part.
void check_tiles(const cp::plan& plan, int rank, int tile) {
  const cp::detail::tile_schedule schedule{plan, rank, tile};
  const index_t rows = plan.q_size(rank), tiles = (rows + tile - 1) / tile;
  for (index_t t = 0; t < tiles; ++t) {
    bool open = false, done = false;
    for (int step = 0; step < plan.ranks(); ++step) {
      const interval needed = plan.queries(rank, plan.shard_at(rank, step));
      const interval queries = schedule.queries(step);
      REQUIRE(queries.contains(needed));
      REQUIRE(queries.lo % tile == 0);
      const bool sees = t * tile < needed.hi && needed.lo < (t + 1) * tile;
      const bool within = queries.lo <= t * tile && t * tile < queries.hi;
      const int part = within ? schedule.parts()[static_cast<std::size_t>(
                                    schedule.first_part(step) + t - queries.lo / tile)]
                              : int{tile_part::idle};
      if (part == tile_part::idle) {
        REQUIRE(!sees);
        continue;
      }
      REQUIRE(((part & tile_part::continues) != 0) == open);
      REQUIRE(!done);
      open = (part & tile_part::stays_open) != 0;
      done = !open;
    }
    REQUIRE(done);
  }
}

struct seen_by_one_head {
  constexpr auto operator()(auto b, auto h, auto q, auto kv) const {
    return (b == 1) & (h == 2) & (q >= kv);
  }
};

struct no_verdicts {
  bool operator()(int, int, int q, int kv) const { return q == kv; }
};

/// A mask whose verdicts say nothing until a single pair is asked about.
struct reluctant {
  constexpr bool operator()(int, int, int q, int kv) const { return q == kv + 5; }
  constexpr kleene operator()(range, range, range q, range kv) const {
    if (q.is_point() && kv.is_point()) return q.lo == kv.lo + 5;
    return verdict::some;
  }
};

} // namespace

TEST_CASE("plan: needed keys against looking at every pair, all masks") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(static_cast<unsigned>(seed));
  for (const examples::named_entry& entry : examples::mask_names) {
    const std::string name = entry.name;
    CAPTURE(name);
    const bool exact = name == "full" || name == "causal" || name == "sliding_window" ||
                       name == "prefix_lm" || name == "document" || name == "document_causal" ||
                       name == "attention_sink";
    for (const char* layout : layouts) {
      CAPTURE(layout);
      const int ranks = 1 + static_cast<int>(random() % 6);
      const int tokens = 30 + static_cast<int>(random() % 50);
      CAPTURE(ranks);
      CAPTURE(tokens);
      examples::mask_library library{{2, 2, tokens, tokens}};
      check_plan(library(name), {2, 2, 2, 8, 8}, cp::shards{any_layout{layout, tokens, ranks}},
                 exact);
    }
  }
}

TEST_CASE("plan: needed keys of random compositions, with keys longer than queries") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(static_cast<unsigned>(seed));
  const auto roll = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  for (int trial = 0; trial < 60; ++trial) {
    const int q_len = roll(60), kv_len = roll(80), ranks = 1 + roll(5);
    examples::mask_library library{{1, 1, std::max(q_len, 1), std::max(kv_len, 1)}};
    const auto word = [&] {
      const char* names[] = {"causal", "sliding_window", "prefix_lm", "document", "dilated_window"};
      return (roll(2) ? "!" : "") + std::string{names[roll(5)]};
    };
    const std::string text = word() + (roll(2) ? " & " : " | ") + word();
    CAPTURE(text);
    CAPTURE(q_len);
    CAPTURE(kv_len);
    CAPTURE(ranks);
    check_plan(library(text), {1, 1, 1, 8, 8},
               cp::shards{any_layout{layouts[roll(3)], q_len, ranks},
                          any_layout{layouts[roll(3)], kv_len, ranks}},
               false);
  }
}

TEST_CASE("plan: all batch entries and heads are asked about") {
  const cp::shards split{shard::contiguous{40, 4}};
  check_plan(seen_by_one_head{}, {2, 3, 1, 8, 8}, split, true);
  CHECK(cp::plan{seen_by_one_head{}, {1, 3, 1, 8, 8}, split}.needed(3, 0).empty());
  CHECK(cp::plan{seen_by_one_head{}, {2, 3, 1, 8, 8}, split}.needed(3, 0) == interval{0, 10});
}

TEST_CASE("plan: a mask without verdicts needs everything; one that hesitates ends in time") {
  const cp::plan plan{no_verdicts{}, {1, 1, 1, 8, 8}, cp::shards{shard::zigzag{50, 3}}};
  for (int rank = 0; rank < 3; ++rank) {
    for (int shard = 0; shard < 3; ++shard) {
      CHECK(plan.needed(rank, shard) == interval{0, plan.kv_size(shard)});
    }
  }
  check_plan(reluctant{}, {1, 1, 1, 8, 8}, cp::shards{shard::striped{61, 4}}, false);
  const int million = 1 << 20;
  const cp::plan large{reluctant{}, {1, 1, 1, 8, 8}, cp::shards{shard::contiguous{million, 8}}};
  CHECK(large.needed(0, 7).size() == million / 8);
}

TEST_CASE("schedule: each query is first and last once, and at all steps between that it needs") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(static_cast<unsigned>(seed));
  for (const char* name :
       {"full", "causal", "!causal", "sliding_window:30", "document", "prefix_lm:70"}) {
    for (const char* layout : layouts) {
      const int ranks = 1 + static_cast<int>(random() % 6);
      const int tokens = static_cast<int>(random() % 400),
                tile = 1 + static_cast<int>(random() % 40);
      CAPTURE(name);
      CAPTURE(layout);
      CAPTURE(ranks);
      CAPTURE(tokens);
      CAPTURE(tile);
      examples::mask_library library{{1, 1, std::max(tokens, 1), std::max(tokens, 1)}};
      const auto mask = library(name);
      const cp::shape s{1, 1, 1, 8, 8};
      const cp::shards split{any_layout{layout, tokens, ranks}};
      const cp::plan plan{mask, s, split};
      for (int rank = 0; rank < ranks; ++rank) {
        const cp::detail::schedule schedule{plan, rank, tile};
        const auto count = static_cast<std::size_t>(plan.q_size(rank));
        std::vector<int> firsts(count), lasts(count), steps(count);
        bool ordered = true, tiled = true;
        for (int step = 0; step < ranks; ++step) {
          const interval needed = plan.queries(rank, plan.shard_at(rank, step));
          REQUIRE(schedule.queries(step).contains(needed));
          std::vector<bool> worked(count);
          for (const cp::detail::piece& p : schedule.pieces(step)) {
            tiled = tiled && p.queries.lo % tile == 0;
            for (index_t i = p.queries.lo; i < p.queries.hi; ++i) {
              const auto at = static_cast<std::size_t>(i);
              ordered = ordered && p.first == (steps[at] == 0) && lasts[at] == 0;
              firsts[at] += p.first;
              lasts[at] += p.last;
              ++steps[at];
              worked[at] = true;
            }
          }
          for (index_t i = needed.lo; i < needed.hi; ++i)
            REQUIRE(worked[static_cast<std::size_t>(i)]);
        }
        CHECK(ordered);
        CHECK(tiled);
        CHECK(firsts == std::vector<int>(count, 1));
        CHECK(lasts == std::vector<int>(count, 1));
        check_tiles(plan, rank, tile);
      }
    }
  }
}

TEST_CASE("schedule: what a zigzag ring works on") {
  const cp::shape s{1, 1, 1, 8, 8};
  const cp::shards split{shard::zigzag{8 * 1024, 4}};
  using cp::detail::piece;
  using pieces = std::vector<piece>;
  const cp::detail::schedule causal{cp::plan{mask::causal{}, s, split}, 1, 128};
  // Rank 1 of 4: chunks 1 and 6. It sees shard 0 with both, those of ranks 2 and 3 with the second.
  CHECK(causal.pieces(0) == pieces{{{0, 2048}, true, false}});
  CHECK(causal.pieces(1) == pieces{{{0, 1024}, false, true}, {{1024, 2048}, false, false}});
  CHECK(causal.pieces(2) == pieces{{{1024, 2048}, false, false}});
  CHECK(causal.pieces(3) == pieces{{{1024, 2048}, false, true}});
  CHECK(causal.carries());
  // Under a window only each chunk's beginning sees another shard; the rest is done after step 0.
  const cp::detail::schedule window{cp::plan{mask::sliding_window{256}, s, split}, 1, 128};
  CHECK(window.pieces(0) == pieces{{{0, 256}, true, false},
                                   {{256, 1024}, true, true},
                                   {{1024, 1280}, true, false},
                                   {{1280, 2048}, true, true}});
  CHECK(window.pieces(1) == pieces{{{0, 256}, false, true}});
  CHECK(window.pieces(2).empty());
  CHECK(window.pieces(3) == pieces{{{1024, 1280}, false, true}});
  const cp::detail::schedule alone{cp::plan{mask::causal{}, s, cp::shards{shard::zigzag{100, 1}}},
                                   0, 128};
  CHECK(alone.pieces(0) == pieces{{{0, 100}, true, true}});
  CHECK_FALSE(alone.carries());
}

TEST_CASE("plan: a window of one shard's width is needed by one neighbour, whatever the ranks") {
  for (int ranks : {2, 3, 8, 64}) {
    CAPTURE(ranks);
    const cp::shape s{1, 4, 2, 64, 32};
    const cp::plan plan{mask::sliding_window{128}, s,
                        cp::shards{shard::contiguous{128 * ranks, ranks}}};
    for (int shard = 0; shard < ranks; ++shard) {
      for (int rank = 0; rank < ranks; ++rank) {
        const bool neighbour = rank == shard || rank == shard + 1;
        CHECK(plan.needed(rank, shard).size() == (neighbour ? 128 : 0));
      }
    }
    const cp::savings saved = plan.saved(s, 2);
    CHECK(saved.steps == 2 * ranks - 1);
    CHECK(saved.possible_steps == ranks * ranks);
    CHECK(saved.forward_bytes == (ranks - 1) * 128 * 2 * (64 + 32) * 2);
    CHECK(saved.unplanned_forward_bytes == ranks * saved.forward_bytes);
    CHECK(saved.backward_bytes == 3 * saved.forward_bytes);
    CHECK(saved.unplanned_backward_bytes == ranks * saved.backward_bytes);
  }
}

TEST_CASE("plan: causal steps, and where zigzag shards come from") {
  const cp::shape s{1, 1, 1, 8, 8};
  const cp::plan straight{mask::causal{}, s, cp::shards{shard::contiguous{64, 4}}};
  CHECK(straight.saved(s, 4).steps == 10);
  const cp::plan folded{mask::causal{}, s, cp::shards{shard::zigzag{64, 4}}};
  CHECK(folded.saved(s, 4).steps == 16);
  // Rank 1 holds chunks 1 and 6 of 8: ranks 2 and 3 see its head, rank 0 sees all of it.
  CHECK(folded.needed(2, 1) == interval{0, 8});
  CHECK(folded.needed(3, 1) == interval{0, 8});
  CHECK(folded.needed(0, 1) == interval{0, 16});
  CHECK(folded.source(2, 1) == 1);
  CHECK(folded.source(3, 1) == 2);
  CHECK(folded.source(0, 1) == 1); // rank 3 has only the head
  const cp::plan everything{mask::full{}, s, cp::shards{shard::zigzag{64, 4}}};
  for (int shard = 0; shard < 4; ++shard) {
    for (int step = 1; step < 4; ++step) {
      CHECK(everything.source((shard + step) % 4, shard) == (shard + step - 1) % 4);
    }
  }
}

TEST_CASE("plan: a window costs the same in all but striped shards, whatever the ranks") {
  const cp::shape s{1, 1, 1, 8, 8};
  for (int ranks : {2, 8, 64}) {
    const index_t tokens = 4096 * ranks;
    const auto sent = [&](auto layout) {
      return cp::plan{mask::sliding_window{1023}, s, cp::shards{layout}}.saved(s, 4).forward_bytes;
    };
    const index_t border = 1023 * (8 + 8) * 4; // of two pieces that follow one another
    CHECK(sent(shard::contiguous{tokens, ranks}) == (ranks - 1) * border);
    CHECK(sent(shard::zigzag{tokens, ranks}) == 2 * (ranks - 1) * border);
  }
}

TEST_CASE("plan: the fingerprint tells masks apart by what they show, not by where tables lie") {
  const cp::shape s{2, 4, 4, 8, 8};
  const auto print = [&](auto mask, index_t tokens) {
    return cp::mask_fingerprint(mask, s, tokens, tokens);
  };
  for (index_t tokens : {100, 1 << 20}) {
    CHECK(print(mask::causal{}, tokens) == print(mask::causal{}, tokens));
    CHECK(print(mask::prefix_lm{64}, tokens) != print(mask::prefix_lm{65}, tokens));
    CHECK(print(mask::sliding_window{30}, tokens) != print(mask::sliding_window{31}, tokens));
    CHECK(print(mask::causal{}, tokens) != print(mask::full{}, tokens));
    CHECK(print(mask::elementwise{mask::causal{}}, tokens) !=
          print(mask::elementwise{mask::sliding_window{8}}, tokens));
  }
  const int lengths[] = {40, 25, 35}, others[] = {40, 26, 34};
  const auto a = mask::document_table::from_lengths(lengths),
             b = mask::document_table::from_lengths(lengths),
             c = mask::document_table::from_lengths(others);
  CHECK(print(mask::document{a.view()}, 100) == print(mask::document{b.view()}, 100));
  CHECK(print(mask::document{a.view()}, 100) != print(mask::document{c.view()}, 100));
}
