// SPDX-License-Identifier: Apache-2.0
// What all programs of the job let their user choose: the problem and how it is split.
#pragma once

#include "problem.hpp"
#include "support/command_line.hpp"

namespace flex {

inline constexpr const char* layouts[] = {"contiguous", "zigzag", "striped"};

inline constexpr examples::option problem_options[] = {
    {"seq", "N", "tokens (32 a rank)"},
    {"batch", "N", "(8)"},
    {"heads", "N", "of queries (8)"},
    {"kv-heads", "N", "of keys and values; heads is a multiple (heads)"},
    {"dim", "N", "of queries and keys (32)"},
    {"v-dim", "N", "of values (dim)"},
    {"mask", "MASK", "which scores are kept, see below (causal)"},
    {"layout", "L", "how the sequence is split: contiguous, zigzag or striped\n(contiguous)"},
    {"seed", "N", "of the inputs, unit-normal float32 numbers (0)"},
};

/// These and a program's own.
inline std::vector<examples::option> with_problem_options(std::span<const examples::option> own) {
  std::vector<examples::option> out{std::begin(problem_options), std::end(problem_options)};
  out.insert(out.end(), own.begin(), own.end());
  return out;
}

/// @throws std::invalid_argument for values that cannot be used.
inline settings read_problem(const examples::command_line& line, int ranks) {
  settings s;
  s.ranks = ranks;
  const auto whole = [&](const char* name, int otherwise, int least, int most) {
    return static_cast<int>(line.whole(name, otherwise, least, most));
  };
  s.n.tokens = whole("seq", 32 * s.ranks, 1, 1 << 20);
  s.n.batch = whole("batch", s.n.batch, 1, 1 << 16);
  s.n.heads = whole("heads", s.n.heads, 1, 1 << 16);
  s.n.kv_heads = whole("kv-heads", s.n.heads, 1, 1 << 16);
  s.n.dim = whole("dim", s.n.dim, 1, 1 << 16);
  s.n.v_dim = whole("v-dim", s.n.dim, 1, 1 << 16);
  s.seed = static_cast<unsigned>(line.whole("seed", 0, 0, 4294967295));
  s.mask = line.text("mask", s.mask);
  s.layout = line.one_of("layout", layouts, s.layout);
  if (s.n.heads % s.n.kv_heads != 0) {
    throw std::invalid_argument("--heads is " + std::to_string(s.n.heads) +
                                ", expected a multiple of --kv-heads, which is " +
                                std::to_string(s.n.kv_heads));
  }
  return s;
}

} // namespace flex
