// SPDX-License-Identifier: Apache-2.0
// Attention with 16-bit elements on the device against the fp64 reference.
#include "attention.cuh"

namespace maskring::testing {
namespace {

template <class T, class Dims>
void all_masks(Dims dims, index_t dim) {
  cuda::workspace scratch;
  const auto exec =
      cuda::on(nullptr, scratch, cuda::unpacked(dims)).with({.kernel = cuda::kernel::portable});
  for (int mask = any_mask::full; mask <= any_mask::scattered; ++mask) {
    compare<T>(exec, {.mask = mask, .qk_dim = dim, .v_dim = dim}, score::none{});
  }
  compare<T>(exec,
             {.mask = any_mask::per_head,
              .batch = 2,
              .q_heads = 6,
              .kv_heads = 2,
              .q_len = 77,
              .kv_len = 301,
              .qk_dim = dim - 8,
              .v_dim = dim / 2},
             score::none{});
  compare<T>(exec,
             {.mask = any_mask::window,
              .batch = 2,
              .q_len = 301,
              .kv_len = 130,
              .qk_dim = dim,
              .v_dim = dim - 24,
              .sink = true,
              .dlse = true},
             score::none{});
  // Rows that begin at odd addresses: no 16-byte copies.
  compare<T>(exec,
             {.mask = any_mask::blocks,
              .q_heads = 4,
              .kv_heads = 1,
              .q_len = 129,
              .kv_len = 200,
              .qk_dim = dim,
              .v_dim = dim,
              .order = layout::swapped},
             score::none{});
  compare<T>(exec, {.mask = any_mask::causal, .q_len = 1, .kv_len = 1, .qk_dim = 8, .v_dim = 8},
             score::none{});
}

/// Every other tile of keys: a row of the block map is as many runs.
struct every_other_tile {
  constexpr auto operator()(auto, auto, auto, auto kv) const { return floor_mod(kv, 256) < 128; }
};

} // namespace

TEST_CASE("bfloat16, head dimension 64") { all_masks<bfloat16>(cuda::head_dims<64>, 64); }
TEST_CASE("bfloat16, head dimension 128") { all_masks<bfloat16>(cuda::head_dims<128>, 128); }
TEST_CASE("bfloat16, head dimension 256") { all_masks<bfloat16>(cuda::head_dims<256>, 256); }
TEST_CASE("half, head dimension 128") { all_masks<float16>(cuda::head_dims<128>, 128); }

TEST_CASE("queries of 192, values of 128") {
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::unpacked(cuda::head_dims_qk_v<192, 128>))
                        .with({.kernel = cuda::kernel::portable});
  compare<bfloat16>(exec, {.q_len = 190, .kv_len = 210, .qk_dim = 192, .v_dim = 128},
                    score::none{});
}

TEST_CASE("the kernel that the device likes best") {
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::unpacked(cuda::head_dims<128>));
  for (int mask = any_mask::full; mask <= any_mask::scattered; ++mask) {
    compare<bfloat16>(exec, {.mask = mask, .qk_dim = 128, .v_dim = 128}, score::none{});
  }
  compare<bfloat16>(exec,
                    {.mask = any_mask::per_head,
                     .batch = 2,
                     .q_heads = 6,
                     .kv_heads = 2,
                     .q_len = 77,
                     .kv_len = 301,
                     .qk_dim = 120,
                     .v_dim = 64,
                     .sink = true},
                    score::none{});
}

TEST_CASE("score modifiers") {
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::unpacked(cuda::head_dims<64>))
                        .with({.kernel = cuda::kernel::portable});
  for (int kind = any_score::identity; kind <= any_score::distance; ++kind) {
    compare<bfloat16>(exec, {.mask = any_mask::causal, .q_len = 200, .kv_len = 170},
                      any_score{kind});
    compare<bfloat16>(
        exec, {.mask = any_mask::full, .q_heads = 4, .q_len = 90, .kv_len = 130, .sink = true},
        any_score{kind});
  }
}

// Whose turn at dq it is: the predecessor lies behind what the lanes of a warp look at together.
TEST_CASE("rows of more runs than lanes") {
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::head_dims<64>);
  for (const index_t kv_len : {9000, 17000}) {
    compare_with<bfloat16, true>(exec, {.q_len = 140, .kv_len = kv_len}, every_other_tile{},
                                 score::none{});
  }
}

} // namespace maskring::testing
