// SPDX-License-Identifier: Apache-2.0
// Every shipped score modifier by name: "NAME[:ARG…]" to the modifier itself, with its concrete
// type.
#pragma once

#include "mask_names.hpp"

#include <maskring/score/bias.hpp>
#include <maskring/score/compose.hpp>
#include <maskring/score/position.hpp>
#include <maskring/score/rotary_part.hpp>
#include <maskring/score/softcap.hpp>

#include <algorithm>
#include <string>
#include <vector>

namespace examples {

inline constexpr named_entry score_names[] = {
    {"none", "", "s", "none", "score/concepts.hpp"},
    {"relative", "", "s + (q − kv)", "relative", "score/position.hpp"},
    {"alibi", "", "s + (kv − q) · 2^(−8 (h + 1) / heads)", "alibi", "score/position.hpp"},
    {"alibi_slopes", "[:FIRST]", "s + (kv − q) · slope[h], slopes halving from head to head",
     "alibi_slopes", "score/position.hpp"},
    {"softcap", "[:CAP]", "cap · tanh(s / cap)", "softcap", "score/softcap.hpp"},
    {"sandwich", "[:DIM]",
     "s + [Σ_{i < dim/2} cos(|q − kv| · 10000^(−2i/dim))] · heads / (8 (h + 1))", "sandwich",
     "score/position.hpp"},
    {"t5_bias", "[:BUCKETS:FARTHEST]", "s + bias[h, bucket(kv − q)], T5's buckets", "bias",
     "score/bias.hpp"},
    {"clipped_bias", "[:REACH]", "s + bias[h, clamp(kv − q, −reach, reach)]", "bias",
     "score/bias.hpp"},
    {"graph_bias", "[:HOPS]", "s + bias[h, hops[q, kv]]", "bias", "score/bias.hpp"},
    {"rotary_part", "[:DIM]", "s + scale · ⟨q_rope[b, h, q], k_rope[b, 0, kv]⟩", "rotary_part",
     "score/rotary_part.hpp"},
    {"alibi_softcap", "[:CAP]", "alibi >> softcap: one after the other", "then",
     "score/compose.hpp"},
};

namespace detail {
inline std::vector<float> small_numbers(maskring::index_t count) {
  dice roll;
  std::vector<float> out;
  for (maskring::index_t i = 0; i < count; ++i) {
    out.push_back(static_cast<float>(roll(2001) - 1000) / 1000.0f);
  }
  return out;
}
} // namespace detail

/// Makes the score modifier that `text` names and returns visit(score, code), as with_mask does.
/// @throws std::invalid_argument for unknown names and bad arguments.
template <class Keeper, class Visit>
auto with_score(const std::string& text, const mask_shape& shape, Keeper& keep, Visit&& visit) {
  namespace score = maskring::score;
  using maskring::index_t;
#define EXAMPLES_VISIT(...) return arguments.finish(), visit(__VA_ARGS__, #__VA_ARGS__)
  words arguments{text};
  const std::string& name = arguments.name();
  const int tokens = std::max(1, std::max(shape.q_len, shape.kv_len)), heads = shape.heads;

  if (name == "none") EXAMPLES_VISIT(score::none{});
  if (name == "relative") EXAMPLES_VISIT(score::relative{});
  if (name == "alibi") EXAMPLES_VISIT(score::alibi{heads});
  if (name == "alibi_slopes") {
    std::vector<float> numbers;
    double slope = arguments.number("first", 0.5);
    for (int h = 0; h < heads; ++h, slope /= 2) numbers.push_back(static_cast<float>(slope));
    const auto slopes = keep(score::alibi_slopes::table(numbers, heads));
    EXAMPLES_VISIT(score::alibi_slopes{slopes});
  }
  if (name == "softcap") {
    const auto cap = static_cast<float>(arguments.number("cap", 30));
    EXAMPLES_VISIT(score::softcap{cap});
  }
  if (name == "sandwich") {
    const int dim = arguments.integer("dim", 64);
    const auto sums = keep(score::sandwich::table(dim, tokens));
    EXAMPLES_VISIT(score::sandwich{sums, heads});
  }
  if (name == "t5_bias" || name == "clipped_bias") {
    const bool t5 = name == "t5_bias";
    const int first = arguments.integer(t5 ? "buckets" : "reach", t5 ? 32 : 16);
    const auto table =
        t5 ? score::distance_buckets::t5(first, arguments.integer("farthest", 128), true)
           : score::distance_buckets::clipped(first);
    const auto buckets = keep(table);
    const auto bias = keep(score::bias_table{detail::small_numbers(index_t{heads} * buckets.count),
                                             heads, buckets.count});
    EXAMPLES_VISIT(score::bias{bias, buckets});
  }
  if (name == "graph_bias") {
    const int hops = std::max(1, arguments.integer("hops", 8));
    std::vector<int> distance; // of a ring of nodes with a few long jumps
    for (int q = 0; q < shape.q_len; ++q) {
      for (int kv = 0; kv < shape.kv_len; ++kv) {
        const int round = std::abs(q - kv) % 64;
        distance.push_back(std::min({round, 64 - round, hops - 1}));
      }
    }
    const auto buckets = keep(score::pair_buckets{distance, shape.q_len, shape.kv_len, hops});
    const auto bias =
        keep(score::bias_table{detail::small_numbers(index_t{heads} * hops), heads, hops});
    EXAMPLES_VISIT(score::bias{bias, buckets});
  }
  if (name == "rotary_part") {
    const int dim = arguments.integer("dim", 16);
    const float scale = 1.0f / static_cast<float>(dim);
    const index_t q_shape[] = {shape.batch, heads, shape.q_len, dim};
    const index_t k_shape[] = {shape.batch, 1, shape.kv_len, dim};
    const auto numbers = [&](const index_t(&s)[4]) {
      const auto view = keep(
          score::number_table{"rotary_part", detail::small_numbers(s[0] * s[1] * s[2] * s[3]), 0});
      return maskring::view<const float, 4>{view.values, s};
    };
    const auto q_rope = numbers(q_shape), k_rope = numbers(k_shape);
    EXAMPLES_VISIT(score::rotary_part{q_rope, k_rope, scale});
  }
  if (name == "alibi_softcap") {
    const auto cap = static_cast<float>(arguments.number("cap", 30));
    EXAMPLES_VISIT(score::alibi{heads} >> score::softcap{cap});
  }
#undef EXAMPLES_VISIT
  refuse_name("score modifier", name, score_names);
}

} // namespace examples
