// SPDX-License-Identifier: Apache-2.0
// The Hopper forward kernel, chosen by force, against the fp64 reference: every shape it has.
#include "attention.cuh"

#include <maskring/mask/compose.hpp>
#include <maskring/score/compose.hpp>
#include <maskring/score/position.hpp>
#include <maskring/score/softcap.hpp>

namespace maskring::testing {
namespace {

template <class T, class Dims>
void all_masks(Dims dims, index_t qk_dim, index_t v_dim) {
  if (!is_hopper()) return;
  cuda::workspace scratch;
  const auto exec =
      cuda::on(nullptr, scratch, cuda::unpacked(dims)).with({.kernel = cuda::kernel::hopper});
  for (int kind = any_mask::full; kind <= any_mask::scattered; ++kind) {
    const any_mask mask{kind};
    compare_with<T, false>(exec, {.qk_dim = qk_dim, .v_dim = v_dim}, mask, any_score{});
    compare_with<T, false>(exec,
                           {.batch = 2,
                            .q_heads = 4,
                            .kv_heads = 2,
                            .q_len = 205,
                            .kv_len = 301,
                            .qk_dim = qk_dim - 8,
                            .v_dim = v_dim - 16,
                            .sink = true},
                           mask, any_score{});
  }
  for (int kind = any_score::identity; kind <= any_score::distance; ++kind) {
    compare_with<T, false>(exec, {.q_len = 389, .kv_len = 311, .qk_dim = qk_dim, .v_dim = v_dim},
                           any_mask{any_mask::causal}, any_score{kind});
  }
  compare_with<T, false>(exec, {.q_len = 1, .kv_len = 1, .qk_dim = qk_dim, .v_dim = 8},
                         any_mask{any_mask::causal}, any_score{});
}

// Documents of 200 tokens, causal: borders that cross blocks of 16 rows.
struct packed {
  constexpr auto operator()(auto, auto, auto q, auto kv) const {
    return (floor_div(q, 200) == floor_div(kv, 200)) & (q >= kv);
  }
};

template <class Dims>
void packed_documents(Dims dims, index_t dim) {
  if (!is_hopper()) return;
  cuda::workspace scratch;
  const auto exec =
      cuda::on(nullptr, scratch, cuda::unpacked(dims)).with({.kernel = cuda::kernel::hopper});
  compare_with<bfloat16, false>(exec, {.q_len = 700, .kv_len = 700, .qk_dim = dim, .v_dim = dim},
                                packed{}, score::none{});
}

} // namespace

TEST_CASE("documents, of whose partial tiles whole rows are kept") {
  packed_documents(cuda::head_dims<64>, 64);
  packed_documents(cuda::head_dims<96>, 96);
  packed_documents(cuda::head_dims<128>, 128);
  packed_documents(cuda::head_dims<192>, 192);
}

TEST_CASE("score modifiers that are asked by distance, past the ends too") {
  if (!is_hopper()) return;
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::unpacked(cuda::head_dims<128>))
                        .with({.kernel = cuda::kernel::hopper});
  const attention_case c{.q_len = 389, .kv_len = 311, .qk_dim = 128, .v_dim = 128};
  const any_mask causal{any_mask::causal};
  compare_with<bfloat16, false>(exec, c, causal, score::alibi{2});
  compare_with<bfloat16, false>(exec, c, causal, score::alibi{2} >> score::softcap{5});
  compare_with<float16, false>(exec, c, causal, score::relative{} >> score::softcap{5});
}

TEST_CASE("a softcap, with maps made for it and without regard to it") {
  if (!is_hopper()) return;
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::unpacked(cuda::head_dims<128>))
                        .with({.kernel = cuda::kernel::hopper});
  const score::softcap cap{5};
  const any_mask causal{any_mask::causal};
  const auto best = cuda::forward_tile<any_mask, score::softcap>(exec, index_t{128}, index_t{128});
  const auto plain = cuda::forward_tile<any_mask>(exec, index_t{128}, index_t{128});
  CHECK(best != plain);
  attention_case c{
      .q_heads = 2, .kv_heads = 1, .q_len = 421, .kv_len = 397, .qk_dim = 128, .v_dim = 128};
  for (const tile_shape tile : {tile_shape{.q = 0, .kv = 0}, best, plain}) {
    c.tile = tile;
    compare_with<bfloat16, false>(exec, c, causal, cap);
    compare_with<float16, false>(exec, c, causal, cap);
  }
  c.tile = {.q = 0, .kv = 0};
  c.q_len = c.kv_len = 420;
  c.sink = true;
  compare_with<bfloat16, false>(exec, c, packed{}, cap);
  compare_with<bfloat16, false>(exec, c, mask::full{}, cap);
}

TEST_CASE("query tiles counted from the last query, of a causal and of the full mask") {
  if (!is_hopper()) return;
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::unpacked(cuda::head_dims<128>))
                        .with({.kernel = cuda::kernel::hopper});
  const auto tile = cuda::forward_tile<mask::causal>(exec, index_t{128}, index_t{128});
  CHECK(tile.from_end);
  for (const index_t q_len : {1, 63, 193, 384, 421}) {
    attention_case c{.batch = 2,
                     .q_heads = 4,
                     .kv_heads = 2,
                     .q_len = q_len,
                     .kv_len = 397,
                     .qk_dim = 128,
                     .v_dim = 120,
                     .sink = q_len % 2 == 1};
    compare_with<bfloat16, false>(exec, c, mask::full{}, score::none{});
    compare_with<bfloat16, false>(exec, c, mask::causal{}, score::none{});
    c.tile = {}; // the one that maps have where none is asked for
    compare_with<bfloat16, false>(exec, c, mask::causal{}, score::none{});
    c.tile = tile; // which calls with modifiers take too
    compare_with<float16, false>(exec, c, mask::causal{}, score::none{});
    compare_with<bfloat16, false>(exec, c, mask::causal{}, score::alibi{4});
    compare_with<bfloat16, false>(exec, c, mask::causal{}, any_score{any_score::distance});
  }
}

TEST_CASE("bfloat16, head dimension 64") { all_masks<bfloat16>(cuda::head_dims<64>, 64, 64); }
TEST_CASE("bfloat16, head dimension 96") { all_masks<bfloat16>(cuda::head_dims<96>, 96, 96); }
TEST_CASE("bfloat16, head dimension 128") { all_masks<bfloat16>(cuda::head_dims<128>, 128, 128); }
TEST_CASE("bfloat16, head dimension 192") { all_masks<bfloat16>(cuda::head_dims<192>, 192, 192); }
TEST_CASE("bfloat16, queries of 192, values of 128") {
  all_masks<bfloat16>(cuda::head_dims_qk_v<192, 128>, 192, 128);
}
TEST_CASE("bfloat16, head dimension 256") { all_masks<bfloat16>(cuda::head_dims<256>, 256, 256); }
TEST_CASE("half, head dimension 128") { all_masks<float16>(cuda::head_dims<128>, 128, 128); }

TEST_CASE("an int-only mask: every element of a tile decides") {
  if (!is_hopper()) return;
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::unpacked(cuda::head_dims<128>))
                        .with({.kernel = cuda::kernel::hopper});
  compare_with<bfloat16, false>(exec, {.q_len = 300, .kv_len = 517, .qk_dim = 128, .v_dim = 128},
                                mask::elementwise{any_mask{any_mask::scattered}}, score::none{});
}

} // namespace maskring::testing
