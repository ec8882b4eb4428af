// SPDX-License-Identifier: Apache-2.0
// Block maps of long sequences on the host: time, runs, memory, for every named mask; and the time
// of one verdict about a pair of shards as long as the sequence.
//
// usage: bench_host_block_map [TOKENS] [TILE]
#include "../examples/support/mask_names.hpp"
#include "../examples/support/tables.hpp"

#include <maskring/block/build.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

using namespace maskring;

template <class Mask>
double verdict_ns(const Mask& mask, index_t tokens) {
  constexpr int rounds = 10'000;
  const int last = static_cast<int>(tokens) - 1;
  volatile int partial = 0;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < rounds; ++i) {
    const int cut = i % static_cast<int>(tokens); // so that no two questions are the same
    const verdict v = verdict_of(mask, {.q = {cut, last}, .kv = {0, last - cut}});
    partial = partial + (v == verdict::some);
  }
  const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - start;
  return spent.count() / rounds;
}

template <class Mask>
void measure(const std::string& name, const Mask& mask, index_t tokens, int tile) {
  double best = 1e9;
  for (int round = 0; round < 3; ++round) {
    const auto start = std::chrono::steady_clock::now();
    const block_map map = make_block_map(mask, {1, 1, tokens, tokens}, {tile, tile});
    const std::chrono::duration<double, std::milli> spent =
        std::chrono::steady_clock::now() - start;
    best = std::min(best, spent.count());
    if (round == 2) {
      std::printf("%-32s %10.2f ms %10zu runs %10zu bytes %7.2f %% empty %8.1f ns a verdict\n",
                  name.c_str(), best, map.rows().runs.size(), map.bytes(), map.sparsity(),
                  verdict_ns(mask, tokens));
    }
  }
}

} // namespace

int main(int count, char** words) {
  const int tokens = count > 1 ? std::atoi(words[1]) : 1 << 20;
  const int tile = count > 2 ? std::atoi(words[2]) : 128;
  if (tokens < 1 || tile < 1) {
    std::fprintf(stderr, "usage: bench_host_block_map [TOKENS] [TILE]\n");
    return 2;
  }
  std::printf("%d tokens, tiles of %d, best of 3\n", tokens, tile);
  // Windows of 4,096, documents of 524 tokens on average (2,000 of them in 2^20), blocks of 32.
  for (const char* name : {"full",
                           "causal",
                           "sliding_window:4096",
                           "attention_sink:4096:4",
                           "dilated_window:4096:128",
                           "global_window:4096:20000",
                           "prefix_lm:4096",
                           "key_padding",
                           "document:524",
                           "document_causal:524",
                           "shared_prefix:524:7",
                           "same_id:4096:64",
                           "batched:4096",
                           "block_diffusion:32",
                           "tree:4096",
                           "tree_training:4096:1000",
                           "cross_intervals:1024",
                           "neighbourhood:1024:13",
                           "tiled_neighbourhood:1024:13",
                           "morton_neighbourhood:13",
                           "sliding_tile:256:3",
                           "sliding_tile_3d:256:3",
                           "spatial_head:226:2:4096",
                           "temporal_head:226:2:4096",
                           "block_topk:128:32",
                           "composed:4096:4096"}) {
    examples::host_tables keep;
    examples::with_mask(name, {1, 1, tokens, tokens}, keep,
                        [&](const auto& mask, const char*) { measure(name, mask, tokens, tile); });
  }
  return 0;
}
