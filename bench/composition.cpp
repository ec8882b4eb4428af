// SPDX-License-Identifier: Apache-2.0
// What composing masks costs: a composition of three beside the same predicate written by hand,
// each applied to every score of a strip of queries, as attention does in partial tiles. GCC 12
// makes the same loops of both, instruction by instruction (-S shows them); where such loops begin
// in memory still moves a ratio by up to a fifth either way.
#include <maskring/mask/basic.hpp>
#include <maskring/mask/compose.hpp>
#include <maskring/score/compose.hpp>
#include <maskring/score/position.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

namespace {

using namespace maskring;

constexpr int keys = 4096, queries = 64, passes = 60, rounds = 15;

struct window_or_ahead_in_prefix {
  int width, length;
  constexpr bool operator()(int, int, int q, int kv) const {
    return ((q >= kv && q - kv <= width) || q < kv) && (kv < length || q >= kv);
  }
};

struct three_biases {
  int heads, more_heads;
  float one_head, one_of_more;
  constexpr float operator()(float s, int, int h, int q, int kv) const {
    const float slope = score::detail::alibi_slope<float>(h, heads, one_head);
    const float other = score::detail::alibi_slope<float>(h, more_heads, one_of_more);
    const float far = static_cast<float>(kv - q);
    return ((s + far * slope) + static_cast<float>(q - kv)) + far * other;
  }
};

template <class Mask>
[[gnu::noinline]] void apply_mask(const Mask& given, float* scores, int first) {
  const Mask mask = given;
  for (int q = 0; q < queries; ++q) {
    for (int kv = 0; kv < keys; ++kv) {
      float& s = scores[q * keys + kv];
      s = mask(0, 0, first + q, kv) ? s : -1e30f;
    }
  }
}

template <class Score>
[[gnu::noinline]] void apply_score(const Score& given, float* scores, int first) {
  const Score score = given;
  for (int q = 0; q < queries; ++q) {
    for (int kv = 0; kv < keys; ++kv) {
      float& s = scores[q * keys + kv];
      s = score(s, 0, 1, first + q, kv);
    }
  }
}

template <class Work>
double nanoseconds(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  for (int pass = 0; pass < passes; ++pass) work(pass * 64);
  const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - start;
  return spent.count() / (double{passes} * queries * keys);
}

// The best of many rounds of each, in turn, so that both meet the same disturbances.
template <class A, class B>
void compare(const char* what, const A& composed, const B& by_hand) {
  double best_composed = 1e9, best_by_hand = 1e9;
  for (int round = 0; round < rounds; ++round) {
    best_composed = std::min(best_composed, nanoseconds(composed));
    best_by_hand = std::min(best_by_hand, nanoseconds(by_hand));
  }
  std::printf("%-6s composed %.3f ns, by hand %.3f ns an element: ratio %.2f\n", what,
              best_composed, best_by_hand, best_composed / best_by_hand);
}

} // namespace

int main(int count, char**) {
  std::vector<float> scores(static_cast<std::size_t>(queries) * keys, 1.0f);
  float* s = scores.data();
  const int width = 699 + count, length = 63 + count, heads = 7 + count; // unknown to compilers
  const auto mask = (mask::sliding_window{width} | !mask::causal{}) & mask::prefix_lm{length};
  const window_or_ahead_in_prefix mask_by_hand{width, length};
  compare(
      "mask", [&](int first) { apply_mask(mask, s, first); },
      [&](int first) { apply_mask(mask_by_hand, s, first); });
  const auto score = score::alibi{heads} >> score::relative{} >> score::alibi{2 * heads};
  const float one_head = 1.0f / static_cast<float>(heads);
  const three_biases score_by_hand{heads, 2 * heads, one_head, one_head / 2};
  compare(
      "score", [&](int first) { apply_score(score, s, first); },
      [&](int first) { apply_score(score_by_hand, s, first); });
  return 0;
}
