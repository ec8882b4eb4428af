// SPDX-License-Identifier: Apache-2.0
// Short queries of grouped heads, packed into one query tile, against the fp64 reference.
#include "attention.cuh"

#include <maskring/score/position.hpp>

#include <limits>

namespace maskring::testing {
namespace {

/// Causal with the queries at the end of the keys, or a window whose width differs between heads.
struct late_mask {
  int offset = 0;
  bool per_head = false;

  constexpr auto operator()(auto, auto h, auto q, auto kv) const -> decltype(q >= kv) {
    if (per_head) return within(q + offset - kv, 0, 9 + 5 * h);
    return q + offset >= kv;
  }
};

struct short_case {
  index_t group = 4, q_len = 1, kv_len = 301, batch = 2, kv_heads = 2;
  layout order = layout::dense;
  bool sink = false, lse = true, continues = false, per_head = false;
};

template <class Executor, class Score>
void check(const Executor& exec, const short_case& c, const Score& score) {
  CAPTURE(c.group);
  CAPTURE(c.q_len);
  CAPTURE(c.kv_len);
  CAPTURE(c.sink);
  CAPTURE(c.continues);
  constexpr index_t dim = 64;
  const index_t heads = c.group * c.kv_heads;
  std::mt19937_64 random{3};
  const auto q = random_tensor<bfloat16, 4>(random, {c.batch, heads, c.q_len, dim}, c.order);
  const auto k = random_tensor<bfloat16, 4>(random, {c.batch, c.kv_heads, c.kv_len, dim}, c.order);
  const auto v = random_tensor<bfloat16, 4>(random, {c.batch, c.kv_heads, c.kv_len, dim}, c.order);
  const auto sink = random_tensor<float, 1>(random, {heads});
  tensor<float, 4> out{{c.batch, heads, c.q_len, dim}, c.order};
  tensor<float, 3> lse{{c.batch, heads, c.q_len}, c.order};
  out.fill(std::numeric_limits<float>::quiet_NaN());
  lse.fill(std::numeric_limits<float>::quiet_NaN());
  const late_mask mask{static_cast<int>(c.kv_len - c.q_len), c.per_head};
  inputs host{*q, *k, *v};
  if (c.sink) host = host.with_sink(*sink);
  const reference_results expected = reference_forward(host, mask, score);

  const on_device<bfloat16, 4> q_d{q}, k_d{k}, v_d{v};
  const on_device<float, 1> sink_d{sink};
  const on_device<float, 4> out_d{out};
  const on_device<float, 3> lse_d{lse};
  results to{*out_d};
  if (c.lse) to.lse = *lse_d;
  const index_t first = c.continues ? 150 : 0;
  if (c.continues) {
    forward(exec, inputs{*q_d, (*k_d).slice(2, 0, first), (*v_d).slice(2, 0, first)}, to, mask,
            score);
  }
  const late_mask rest{mask.offset - static_cast<int>(first), c.per_head};
  inputs in{*q_d, (*k_d).slice(2, first, c.kv_len - first),
            (*v_d).slice(2, first, c.kv_len - first)};
  if (c.sink) in = in.with_sink(*sink_d);
  if (c.continues) in = in.continuing({to.out, to.lse});
  forward(exec, in, to, rest, score);
  out_d.read(out), lse_d.read(lse);
  CHECK(relative_error(out, expected.out) < 5e-3);
  if (c.lse) CHECK(max_error(lse, expected.lse) < 2e-3);
}

/// By head and query alone: keys have other positions in a call over the last of them.
struct head_bias {
  template <class S>
  constexpr S operator()(S s, int, int h, int q, int) const {
    return s + S(0.1f * static_cast<float>(h + q));
  }
};

template <class Executor>
void check_all(const Executor& exec) {
  for (index_t group : {1, 2, 4, 8}) {
    for (index_t q_len : {1, 3, 16}) {
      const short_case c{.group = group, .q_len = q_len};
      check(exec, c, head_bias{});
      short_case other = c;
      other.order = layout::swapped;
      other.kv_heads = 1;
      other.sink = true;
      check(exec, other, head_bias{});
      other.kv_heads = 2;
      other.lse = false;
      check(exec, other, head_bias{});
      other = c;
      other.sink = other.continues = true;
      check(exec, other, head_bias{});
      other = c;
      other.per_head = true;
      check(exec, other, head_bias{});
    }
  }
  check(exec, {.group = 8, .q_len = 25}, head_bias{}); // more rows than a tile of 192
}

} // namespace

TEST_CASE("short queries of grouped heads") {
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::head_dims<64>);
  check_all(exec);
  check_all(exec.with({.kernel = cuda::kernel::portable}));
}

TEST_CASE("short queries under ALiBi, and without a modifier") {
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::head_dims<64>);
  for (index_t q_len : {1, 3, 16}) {
    const short_case c{.group = 8, .q_len = q_len, .sink = true};
    check(exec, c, score::alibi{16});
    check(exec.with({.kernel = cuda::kernel::portable}), c, score::none{});
  }
}

TEST_CASE("a backward pass after a packed forward pass") {
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::head_dims<64>);
  compare_with<bfloat16, true>(exec,
                               {.batch = 2,
                                .q_heads = 8,
                                .kv_heads = 2,
                                .q_len = 5,
                                .kv_len = 201,
                                .sink = true,
                                .dlse = true},
                               late_mask{196}, score::none{});
}

} // namespace maskring::testing
