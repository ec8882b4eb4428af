// SPDX-License-Identifier: Apache-2.0
// Attention problems of all shapes for the host's tests, and one check of each against the
// reference.
#pragma once

#include "support/reference.hpp"

#include <maskring/cpu/host.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <string>

namespace maskring::testing {

/// Many masks in one type, so that the kernels are compiled once. Takes ints: its tiles are
/// classified by their elements.
struct case_mask {
  enum kind {
    full,
    causal,
    window,
    prefix,
    documents,
    rows_see_nothing,
    nothing,
    scattered,
    heads
  };
  static constexpr int kinds = 9;
  kind which;

  constexpr bool operator()(int b, int h, int q, int kv) const {
    switch (which) {
    case full:
      return true;
    case causal:
      return q >= kv;
    case window:
      return q >= kv && q - kv <= 20;
    case prefix:
      return kv < 30 + b || q >= kv;
    case documents:
      return q / 37 == kv / 41;
    case rows_see_nothing:
      return q % 5 != 2 && q + 60 >= kv;
    case nothing:
      return false;
    case scattered:
      return (q * 7919 + kv * 104729 + h * 31) % 11 < 4;
    case heads:
      return q >= kv + 10 * h - 5 * b;
    }
    return false;
  }
};

/// A score modifier with a slope, a bias and an index of everything.
struct bent {
  constexpr auto operator()(auto s, int b, int h, int q, int kv) const {
    return 2.0f * tanh(s / 2.0f) + 0.01f * static_cast<float>((h + 1) * (kv - q) + b);
  }
};

struct attention_case {
  index_t batch = 1, q_heads = 1, kv_heads = 1, q_len = 64, kv_len = 64, qk_dim = 16, v_dim = 16;
  case_mask::kind mask = case_mask::full;
  layout order = layout::dense;
  tile_shape tile{};
  int threads = 1;
  cpu::isa level = cpu::best_isa();
  bool sink = false, dlse = false, carried = false, accumulate = false;
  float scale = 0;

  std::string text() const {
    std::string out;
    const auto add = [&](const char* name, auto value) {
      out += std::string{name} + ' ' + std::to_string(value) + ", ";
    };
    add("batch", batch), add("q_heads", q_heads), add("kv_heads", kv_heads), add("q_len", q_len);
    add("kv_len", kv_len), add("qk_dim", qk_dim), add("v_dim", v_dim), add("mask", int{mask});
    add("swapped", order == layout::swapped), add("tile.q", tile.q), add("tile.kv", tile.kv);
    add("threads", threads), add("level", static_cast<int>(level)), add("sink", sink);
    add("dlse", dlse), add("carried", carried), add("accumulate", accumulate), add("scale", scale);
    return out;
  }
};

/// How far a result of type T may be from the reference: rounding of the result, and fp32 sums.
template <class T>
double tolerance(double size) {
  const double rounding = std::is_same_v<T, float>     ? 0
                          : std::is_same_v<T, float16> ? 0x1p-11
                                                       : 0x1p-8;
  return (4e-6 + rounding) * std::max(1.0, size);
}

template <class T, int Rank>
double largest(const tensor<T, Rank>& x) {
  double size = 0;
  for (const T& e : x.storage()) {
    if (std::isfinite(to_double(e))) size = std::max(size, std::abs(to_double(e)));
  }
  return size;
}

template <class Computed, int Rank>
void check_close(const char* name, const tensor<Computed, Rank>& computed,
                 const tensor<double, Rank>& expected) {
  CAPTURE(name);
  CHECK(max_error(computed, expected) <= tolerance<Computed>(largest(expected)));
}

/// Forward and backward of one case with inputs of type T, output O and gradients G. The backward
/// pass gets the library's own output, so rounding of a 16-bit output is allowed for in delta.
template <class T, class O, class G, class Score>
void check_case(const attention_case& c, std::mt19937_64& random) {
  const std::string text = c.text();
  CAPTURE(text);
  const case_mask mask{c.mask};
  const Score score{};
  const auto shape = [&](index_t heads, index_t length, index_t dim) {
    return std::array<index_t, 4>{c.batch, heads, length, dim};
  };
  const auto q = random_tensor<T, 4>(random, shape(c.q_heads, c.q_len, c.qk_dim), c.order);
  const auto k = random_tensor<T, 4>(random, shape(c.kv_heads, c.kv_len, c.qk_dim), c.order);
  const auto v = random_tensor<T, 4>(random, shape(c.kv_heads, c.kv_len, c.v_dim), c.order);
  const auto dout = random_tensor<T, 4>(random, shape(c.q_heads, c.q_len, c.v_dim), c.order);
  const auto dlse = random_tensor<float, 3>(random, {c.batch, c.q_heads, c.q_len}, c.order);
  const auto sink = random_tensor<float, 1>(random, {c.q_heads});
  options opt;
  opt.scale = c.scale;
  opt.tile = c.tile;
  const host executor{c.threads, c.level};

  inputs in{*q, *k, *v};
  if (c.sink) in = in.with_sink(*sink);
  tensor<O, 4> out{shape(c.q_heads, c.q_len, c.v_dim), c.order};
  tensor<float, 3> lse{{c.batch, c.q_heads, c.q_len}, c.order};
  forward(executor, in, results{*out, *lse}, mask, score, opt);
  const auto expected = reference_forward(in, mask, score, opt);
  check_close("out", out, expected.out);
  check_close("lse", lse, expected.lse);

  if (c.carried) {
    auto state = random_tensor<float, 4>(random, shape(c.q_heads, c.q_len, c.v_dim), c.order);
    auto state_lse = random_tensor<float, 3>(random, {c.batch, c.q_heads, c.q_len});
    for (index_t i = 0; i < c.q_len && c.batch > 0; i += 3) { // rows that saw nothing before
      state_lse(0, 0, i) = -std::numeric_limits<float>::infinity();
      for (index_t d = 0; d < c.v_dim; ++d) state(0, 0, i, d) = 0;
    }
    const auto continued = in.continuing({*state, *state_lse});
    const auto all = reference_forward(continued, mask, score, opt);
    forward(executor, continued, results{*state, *state_lse}, mask, score, opt); // in place
    check_close("continued out", state, all.out);
    check_close("continued lse", state_lse, all.lse);
  }

  upstream up{*dout};
  if (c.dlse) up.dlse = *dlse;
  const auto start = [&](tensor<G, 4>& t) {
    for (G& x : t.storage()) x = G(c.accumulate ? 0.5f : 7.0f);
  };
  tensor<G, 4> dq{shape(c.q_heads, c.q_len, c.qk_dim), c.order};
  tensor<G, 4> dk{shape(c.kv_heads, c.kv_len, c.qk_dim), c.order};
  tensor<G, 4> dv{shape(c.kv_heads, c.kv_len, c.v_dim), c.order};
  tensor<float, 1> dsink{{c.q_heads}};
  start(dq), start(dk), start(dv);
  dsink.fill(c.accumulate ? 0.5f : 7.0f);
  opt.accumulate = c.accumulate;
  saved kept{*q, *k, *v, *out, *lse};
  gradients grad{*dq, *dk, *dv};
  if (c.sink) {
    kept = kept.with_sink(*sink);
    grad = grad.with_sink(*dsink);
  }
  backward(executor, kept, up, grad, mask, score, opt);

  auto truth = reference_backward(in, up, mask, score, opt);
  if (c.accumulate) {
    for (auto* t : {&truth.dq, &truth.dk, &truth.dv}) {
      for (double& x : t->storage()) x += 0.5;
    }
    for (double& x : truth.dsink.storage()) x += 0.5;
  }
  const auto check_gradient = [&](const char* name, const auto& computed, const auto& reference) {
    CAPTURE(name);
    const double size = std::max(1.0, largest(reference));
    CHECK(max_error(computed, reference) <= 4 * (tolerance<G>(size) + tolerance<O>(size)));
  };
  check_gradient("dq", dq, truth.dq);
  check_gradient("dk", dk, truth.dk);
  check_gradient("dv", dv, truth.dv);
  if (c.sink) CHECK(max_error(dsink, truth.dsink) <= 64 * tolerance<O>(largest(truth.dsink)));
}

/// A case whose every property is drawn at random, small enough for the reference.
inline attention_case random_case(std::mt19937_64& random) {
  const auto pick = [&](auto... values) {
    const index_t list[] = {static_cast<index_t>(values)...};
    return list[random() % (sizeof list / sizeof *list)];
  };
  attention_case c;
  c.batch = pick(1, 1, 2);
  c.kv_heads = pick(1, 2);
  c.q_heads = c.kv_heads * pick(1, 1, 2, 3);
  c.q_len = pick(1, 2, 63, 64, 65, 100, 127, 129, 150);
  c.kv_len = pick(1, 3, 63, 64, 65, 96, 127, 129, 200);
  c.qk_dim = pick(1, 8, 16, 24, 40);
  c.v_dim = pick(1, 5, 16, 32, 33);
  c.mask = static_cast<case_mask::kind>(random() % case_mask::kinds);
  c.order = random() % 3 == 0 ? layout::swapped : layout::dense;
  c.tile = {static_cast<int>(pick(16, 50, 64, 128, 128, 300)),
            static_cast<int>(pick(16, 50, 64, 128, 128, 300)), pick(0, 0, 1) != 0};
  c.threads = static_cast<int>(pick(1, 2, 3));
  c.level = std::min(cpu::best_isa(), static_cast<cpu::isa>(pick(0, 1, 2, 2)));
  c.sink = random() % 3 == 0;
  c.dlse = random() % 2 == 0;
  c.carried = random() % 3 == 0;
  c.scale = random() % 3 == 0 ? 0.3f : 0.0f;
  return c;
}

} // namespace maskring::testing
