// SPDX-License-Identifier: Apache-2.0
// A mask of your own: write what is kept, test it at compile time, look at it, attend.
#include <maskring/maskring.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

namespace mr = maskring;

// A chat: every token sees the system prompt; beyond it, each turn sees itself and the turn before.
struct two_turns {
  int prompt, turn;
  constexpr auto operator()(auto /*batch*/, auto /*head*/, auto q, auto kv) const {
    const auto q_turn = mr::floor_div(q - prompt, turn), kv_turn = mr::floor_div(kv - prompt, turn);
    return (kv < prompt) | ((q >= kv) & (q_turn - kv_turn <= 1));
  }
};

// Asked about numbers, the functor masks single scores.
static_assert(two_turns{64, 100}(0, 0, 500, 63) && !two_turns{64, 100}(0, 0, 500, 64));

// Asked about ranges, it decides about a whole tile at once: this one is never visited,
static_assert(mr::verdict_of(two_turns{64, 100}, {.q = {512, 639}, .kv = {128, 255}}) ==
              mr::verdict::none);
// and this one runs without masking.
static_assert(mr::verdict_of(two_turns{64, 100}, {.q = {512, 639}, .kv = {0, 63}}) ==
              mr::verdict::all);

int main() {
  constexpr mr::index_t batch = 1, heads = 4, tokens = 1024, dim = 64;
  constexpr two_turns mask{64, 100};

  const auto map = mr::make_block_map(mask, {batch, heads, tokens, tokens}, {32, 32});
  std::printf("%s%.0f %% of the tiles are never visited\n\n", mr::to_string(map).c_str(),
              map.sparsity());

  std::vector<float> q(batch * heads * tokens * dim), out(q.size()), split(q.size());
  for (std::size_t i = 0; i < q.size(); ++i)
    q[i] = static_cast<float>((i * 2654435761u) % 1000) / 500 - 1;
  const auto tensor = [&](auto* data) { return mr::view{data, {batch, heads, tokens, dim}}; };
  const mr::inputs in{tensor(q.data()), tensor(q.data()), tensor(q.data())};
  mr::forward(mr::host(), in, mr::results{tensor(out.data())}, mask);

  // The same with the sequence split over four ranks: the mask goes along as it is.
  mr::comm::run_ranks(4, [&](mr::comm::threads& comm) {
    mr::cp::ring ring{
        comm, {batch, heads, heads, dim, dim}, mr::shard::contiguous{tokens, 4}, mask};
    const mr::index_t share = tokens / 4, first = comm.rank() * share;
    const auto mine = [&](auto whole) { return whole.slice(2, first, share); };
    ring.forward(mr::host(1), mr::inputs{mine(in.q), mine(in.k), mine(in.v)},
                 mr::results{mine(tensor(split.data()))});
  });
  float worst = 0;
  for (std::size_t i = 0; i < out.size(); ++i) worst = std::max(worst, std::abs(out[i] - split[i]));
  std::printf("one rank and four differ by at most %.1e\n", static_cast<double>(worst));
  return worst < 2e-6f ? 0 : 1;
}
