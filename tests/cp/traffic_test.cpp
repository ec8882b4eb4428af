// SPDX-License-Identifier: Apache-2.0
// What travels, counted in the transport; and how ranks that disagree find out.
#include "../../examples/support/any_layout.hpp"
#include "../../examples/support/any_mask.hpp"
#include "problems.hpp"

#include <doctest/doctest.h>

namespace {

using namespace maskring;
using namespace maskring::testing;
using examples::any_layout;
using any_shards = cp::shards<any_layout, any_layout>;

/// Bytes and messages of one forward and one backward pass, without those of the set-up.
struct passes {
  comm::traffic forward, backward;
};

comm::traffic difference(const comm::traffic& later, const comm::traffic& earlier) {
  comm::traffic out = later;
  for (std::size_t i = 0; i < out.cells.size(); ++i) {
    out.cells[i].bytes -= earlier.cells[i].bytes;
    out.cells[i].messages -= earlier.cells[i].messages;
  }
  return out;
}

/// Traffic after the given number of passes: 0 only sets up (the first call shares its element
/// type).
template <class Driver, class Mask>
comm::traffic sent_by(int calls, const whole_inputs<>& in, const any_shards& split,
                      const Mask& mask, const options& opt) {
  return comm::run_ranks(split.q.ranks(), [&](comm::threads& c) {
    const int rank = c.rank();
    const auto q = shard_of(in.q, split.q, rank), dout = shard_of(in.dout, split.q, rank);
    const auto k = shard_of(in.k, split.kv, rank), v = shard_of(in.v, split.kv, rank);
    case_sizes mine = in.sizes;
    mine.q_len = split.q.size(rank);
    mine.kv_len = split.kv.size(rank);
    whole_results<> local{mine};
    Driver driver{c, in.sizes.shape, split, mask, {}, opt};
    for (int i = 0; i < calls; ++i) {
      if (i != 1) {
        driver.forward(host{1}, inputs{*q, *k, *v}, results{*local.out, *local.lse});
      } else {
        driver.backward(host{1}, saved{*q, *k, *v, *local.out, *local.lse}, upstream{*dout},
                        gradients{*local.dq, *local.dk, *local.dv});
      }
    }
  });
}

/// With calls forward, backward, forward: the third differs from the second by one forward pass.
template <class Driver, class Mask>
passes count_passes(const whole_inputs<>& in, const any_shards& split, const Mask& mask,
                    const options& opt = {}) {
  const auto one = sent_by<Driver>(1, in, split, mask, opt);
  const auto two = sent_by<Driver>(2, in, split, mask, opt);
  const auto three = sent_by<Driver>(3, in, split, mask, opt);
  return {difference(three, two), difference(two, one)};
}

using examples::any_mask;
using any_ring = cp::ring<comm::threads, any_layout, any_layout, any_mask, score::none>;
using any_gather = cp::all_gather<comm::threads, any_layout, any_layout, any_mask, score::none>;

/// What every rank's attempt to build a driver says.
template <class Build>
std::vector<std::string> errors_of(int ranks, Build build) {
  std::vector<std::string> errors(static_cast<std::size_t>(ranks));
  comm::run_ranks(ranks, [&](comm::threads& c) {
    try {
      build(c);
    } catch (const std::invalid_argument& error) {
      errors[static_cast<std::size_t>(c.rank())] = error.what();
    }
  });
  return errors;
}

} // namespace

TEST_CASE("traffic: a window of one shard's width sends keys to one neighbour only") {
  for (int ranks : {2, 4, 8}) {
    constexpr int shard = 32;
    const case_sizes s{{2, 4, 2, 8, 4}, shard * ranks, shard * ranks};
    const whole_inputs<> in{3, s};
    examples::mask_library library{{2, 4, shard * ranks, shard * ranks}};
    const auto mask = library("sliding_window:32");
    const any_shards split{any_layout{"contiguous", shard * ranks, ranks}};
    const auto check = [&](const passes& sent) {
      for (int from = 0; from < ranks; ++from) {
        for (int to = 0; to < ranks; ++to) {
          CAPTURE(from);
          CAPTURE(to);
          const bool neighbour = to == from + 1;
          // Keys and values: batch 2 x 2 key heads x 32 tokens x (8 + 4) floats, in two messages.
          const comm::traffic::cell keys{2 * 2 * 32 * (8 + 4) * 4, 2}, nothing{};
          CHECK(sent.forward.between(from, to) == (neighbour ? keys : nothing));
          // Backward: the same, and gradients as large in the other direction.
          const bool home = to == from - 1;
          CHECK(sent.backward.between(from, to) == (neighbour || home ? keys : nothing));
        }
      }
    };
    check(count_passes<any_ring>(in, split, mask));
    check(count_passes<any_gather>(in, split, mask));
  }
}

TEST_CASE("traffic: what the transport counts is what the plan says") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(static_cast<unsigned>(seed));
  for (const char* name : {"full", "causal", "document", "prefix_lm:5", "block_diffusion"}) {
    for (const char* layout : {"contiguous", "zigzag", "striped"}) {
      CAPTURE(name);
      CAPTURE(layout);
      const int ranks = 1 + static_cast<int>(random() % 6);
      const int tokens = 20 + static_cast<int>(random() % 60);
      CAPTURE(ranks);
      CAPTURE(tokens);
      const case_sizes s{{1, 4, 2, 5, 3}, tokens, tokens};
      const whole_inputs<> in{3, s};
      examples::mask_library library{{1, 4, tokens, tokens}};
      const auto mask = library(name);
      const any_shards split{any_layout{layout, tokens, ranks}};
      const cp::plan plan{mask, s.shape, split};
      const auto check = [](const passes& sent, const cp::savings& saved) {
        CHECK(static_cast<index_t>(sent.forward.bytes()) == saved.forward_bytes);
        CHECK(static_cast<index_t>(sent.backward.bytes()) == saved.backward_bytes);
        CHECK(saved.forward_bytes <= saved.unplanned_forward_bytes);
        CHECK(saved.backward_bytes <= saved.unplanned_backward_bytes);
      };
      check(count_passes<any_ring>(in, split, mask), plan.saved(s.shape, 4));
      check(count_passes<any_gather>(in, split, mask), plan.saved(s.shape, 4));
    }
  }
}

TEST_CASE("agreement: every rank learns what differs, and where") {
  const cp::shape shape{2, 4, 2, 8, 8};
  const auto expect = [](const std::vector<std::string>& errors, const std::string& part) {
    for (const std::string& error : errors) {
      CAPTURE(error);
      CHECK(error.find(part) != std::string::npos);
    }
  };
  const auto odd_one_out = [&](auto change) {
    return errors_of(3, [&](comm::threads& c) {
      cp::shape mine = shape;
      index_t tokens = 60;
      int width = 7;
      options opt;
      if (c.rank() == 2) change(mine, tokens, width, opt);
      cp::ring{c, mine, shard::zigzag{tokens, 3}, mask::sliding_window{width}, {}, opt};
    });
  };
  expect(odd_one_out([](cp::shape& s, auto&, auto&, auto&) { s.kv_heads = 4; }),
         "cp::ring: kv_heads is 4 on rank 2 and 2 on rank 0, expected the same on all ranks");
  expect(odd_one_out([](cp::shape& s, auto&, auto&, auto&) { s.batch = -1; }), "batch is -1");
  expect(odd_one_out([](auto&, index_t& tokens, auto&, auto&) { tokens = 61; }),
         "query sequence is 61 on rank 2 and 60 on rank 0");
  expect(odd_one_out([](auto&, auto&, int& width, auto&) { width = 8; }),
         "rank 2 has another mask than rank 0");
  expect(odd_one_out([](auto&, auto&, auto&, options& opt) { opt.scale = 0.5f; }),
         "rank 2 has another scale than rank 0");

  expect(errors_of(3,
                   [&](comm::threads& c) {
                     examples::mask_library library{{2, 4, 60, 60}};
                     any_ring{c, shape,
                              any_shards{any_layout{c.rank() == 1 ? "striped" : "zigzag", 60, 3}},
                              library("causal")};
                   }),
         "rank 1 has another query layout than rank 0");
  expect(errors_of(2,
                   [&](comm::threads& c) {
                     const shard::contiguous split{60, 2};
                     if (c.rank() == 0) {
                       cp::ring{c, shape, split, mask::causal{}};
                     } else {
                       cp::all_gather{c, shape, split, mask::causal{}};
                     }
                   }),
         "rank 1 has another driver than rank 0");

  // The same on all ranks, and wrong.
  const auto all_wrong = [&](cp::shape wrong, int ranks) {
    return errors_of(2, [&](comm::threads& c) {
      cp::all_gather{c, wrong, shard::contiguous{60, ranks}, mask::causal{}};
    });
  };
  expect(all_wrong({2, 4, 3, 8, 8}, 2),
         "q_heads is 4, expected a multiple of kv_heads, which is 3");
  expect(all_wrong({2, 4, 2, 0, 8}, 2), "qk_dim is 0, expected 1 or more");
  expect(all_wrong({-2, 4, 2, 8, 8}, 2), "batch is -2, expected 0 or more");
  expect(all_wrong(shape, 3), "the layout is for 3 ranks, expected the communicator's 2");
}

TEST_CASE("agreement: a local tensor of another size or type is refused before anything moves") {
  const auto error_with = [](index_t tokens_of_1, auto element_of_1) {
    std::string message = "no error";
    try {
      comm::run_ranks(2, [&](comm::threads& c) {
        cp::ring ring{c, {1, 2, 2, 8, 8}, shard::contiguous{20, 2}, mask::causal{}};
        const auto run = [&]<class T>(index_t tokens, T) {
          const tensor<T, 4> in{{1, 2, tokens, 8}};
          tensor<T, 4> out{{1, 2, tokens, 8}};
          ring.forward(host{1}, inputs{*in, *in, *in}, results{*out});
        };
        if (c.rank() == 0) run(10, 1.0f);
        if (c.rank() == 1) run(tokens_of_1, element_of_1);
      });
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    return message;
  };
  CHECK(error_with(10, 1.0f) == "no error");
  CHECK(error_with(11, 1.0f) ==
        "maskring: cp::ring: sequence extent of q is 11, expected 10 on rank 1 of 2");
  CHECK(error_with(10, float16{}) ==
        "maskring: cp::ring: bytes of an element is 2 on rank 1 and 4 on rank 0, expected the same "
        "on all ranks");
}

TEST_CASE("a rank that throws between two passes ends the others in the middle of theirs") {
  const case_sizes s{{1, 2, 2, 8, 8}, 64, 64};
  const whole_inputs<> in{4, s};
  std::string seen[4];
  CHECK_THROWS_WITH_AS(
      comm::run_ranks(4,
                      [&](comm::threads& c) {
                        const shard::zigzag split{64, 4};
                        const auto q = shard_of(in.q, split, c.rank());
                        tensor<float, 4> out{{1, 2, 16, 8}};
                        cp::ring ring{c, s.shape, split, mask::full{}};
                        try {
                          for (int i = 0;; ++i) {
                            if (c.rank() == 2 && i == 3) throw std::runtime_error{"out of tokens"};
                            ring.forward(host{1}, inputs{*q, *q, *q}, results{*out});
                          }
                        } catch (const comm::rank_failed& failure) {
                          seen[c.rank()] = failure.what();
                          CHECK(failure.rank() == 2);
                          throw;
                        }
                      }),
      "out of tokens", std::runtime_error);
  for (int rank : {0, 1, 3}) CHECK(seen[rank] == "maskring: rank 2 failed: out of tokens");
}
