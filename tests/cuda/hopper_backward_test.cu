// SPDX-License-Identifier: Apache-2.0
// The backward pass by Hopper's own kernel, which an executor without a policy chooses there,
// against the fp64 reference.
#include "attention.cuh"

namespace maskring::testing {
namespace {

template <class T, class Dims>
void all_masks(Dims dims, index_t dim) {
  if (!is_hopper()) return;
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::unpacked(dims));
  for (int mask = any_mask::full; mask <= any_mask::scattered; ++mask) {
    compare<T>(exec, {.mask = mask, .qk_dim = dim, .v_dim = dim}, any_score{});
    compare<T>(exec,
               {.mask = mask,
                .batch = 2,
                .q_heads = 6,
                .kv_heads = 2,
                .q_len = 205,
                .kv_len = 301,
                .qk_dim = dim - 8,
                .v_dim = dim / 2,
                .sink = true,
                .dlse = true},
               any_score{});
  }
  for (int kind = any_score::identity; kind <= any_score::distance; ++kind) {
    compare<T>(exec, {.q_len = 389, .kv_len = 311, .qk_dim = dim, .v_dim = dim}, any_score{kind});
  }
  // Rows that begin at odd addresses: the portable kernel's.
  compare<T>(exec, {.q_len = 129, .kv_len = 200, .qk_dim = dim, .order = layout::swapped},
             any_score{});
  compare<T>(exec, {.q_len = 1, .kv_len = 1, .qk_dim = 8, .v_dim = 8}, any_score{});
}

/// Every other tile of keys: a row of the block map is as many runs.
struct every_other_tile {
  constexpr auto operator()(auto, auto, auto, auto kv) const { return floor_mod(kv, 256) < 128; }
};

struct window {
  int width;
  constexpr auto operator()(auto, auto, auto q, auto kv) const { return within(q - kv, 0, width); }
};

} // namespace

TEST_CASE("backward on Hopper: bfloat16, head dimension 64") {
  all_masks<bfloat16>(cuda::head_dims<64>, 64);
}
TEST_CASE("backward on Hopper: bfloat16, head dimension 128") {
  all_masks<bfloat16>(cuda::head_dims<128>, 128);
}
TEST_CASE("backward on Hopper: half, head dimension 128") {
  all_masks<float16>(cuda::head_dims<128>, 128);
}

TEST_CASE("backward on Hopper, without a modifier: windows, and rows of more runs than lanes") {
  if (!is_hopper()) return;
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::unpacked(cuda::head_dims<128>));
  for (const index_t length : {64, 700}) {
    compare_with<bfloat16, true>(exec,
                                 {.q_len = length, .kv_len = length, .qk_dim = 128, .v_dim = 128},
                                 window{100}, score::none{});
  }
  compare_with<bfloat16, true>(exec, {.q_len = 140, .kv_len = 9000, .qk_dim = 16, .v_dim = 16},
                               every_other_tile{}, score::none{});
}

// More units than blocks, so that all take several, and many blocks that add to each query tile.
TEST_CASE("backward on Hopper: the same bits each time, and in any order nearly the same") {
  if (!is_hopper()) return;
  constexpr index_t heads = 8, length = 3000, dim = 128;
  std::mt19937_64 random{7};
  const auto normal = [&] { return random_tensor<bfloat16, 4>(random, {1, heads, length, dim}); };
  const auto q = normal(), k = normal(), v = normal(), dout = normal();
  const on_device<bfloat16, 4> q_d{q}, k_d{k}, v_d{v}, dout_d{dout}, out_d{q};
  const tensor<float, 3> lse{{1, heads, length}};
  const on_device<float, 3> lse_d{lse};
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::unpacked(cuda::head_dims<128>));
  const window mask{1200};
  forward(exec.with({.kernel = cuda::kernel::portable}), inputs{*q_d, *k_d, *v_d},
          results{*out_d, *lse_d}, mask);
  const auto run = [&](const cuda::policy& policy) {
    tensor<bfloat16, 4> dq{{1, heads, length, dim}}, dk = dq, dv = dq;
    const on_device<bfloat16, 4> dq_d{dq}, dk_d{dk}, dv_d{dv};
    backward(exec.with(policy), saved{*q_d, *k_d, *v_d, *out_d, *lse_d}, upstream{*dout_d},
             gradients{*dq_d, *dk_d, *dv_d}, mask);
    dq_d.read(dq), dk_d.read(dk), dv_d.read(dv);
    return std::vector{dq, dk, dv};
  };
  const auto same = [](const auto& a, const auto& b) {
    return std::memcmp(a.storage().data(), b.storage().data(), a.storage().size() * 2) == 0;
  };
  const auto first = run({});
  for (int i = 0; i < 5; ++i) {
    const auto again = run({});
    for (int t = 0; t < 3; ++t) CHECK(same(first[t], again[t]));
  }
  const auto any_order = run({.deterministic = false});
  const auto portable = run({.kernel = cuda::kernel::portable});
  for (int t = 0; t < 3; ++t) {
    CHECK(relative_error(any_order[t], first[t]) < 2e-3);
    CHECK(relative_error(portable[t], first[t]) < 2e-3);
  }
}

} // namespace maskring::testing
