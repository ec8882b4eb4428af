// SPDX-License-Identifier: Apache-2.0
// The portable kernels' shapes for devices that give a block 99 KB of shared memory, on any device.
#include "attention.cuh"

#include <maskring/score/softcap.hpp>

namespace maskring::testing {
namespace {

template <class Dims>
void all_masks(Dims dims, index_t dim) {
  if (!cuda::detail::may_lack_memory) {
    MESSAGE("skipped: compiled for devices with more shared memory only");
    return;
  }
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::unpacked(dims))
                        .with({.kernel = cuda::kernel::portable, .shared_memory = 99 * 1024});
  for (int mask = any_mask::full; mask <= any_mask::scattered; ++mask) {
    compare<bfloat16>(exec, {.mask = mask, .qk_dim = dim, .v_dim = dim}, score::none{});
  }
  attention_case c{.mask = any_mask::per_head, .batch = 2, .q_heads = 6, .kv_heads = 2};
  c.q_len = 77;
  c.kv_len = 301;
  c.qk_dim = dim - 8;
  c.v_dim = dim / 2;
  c.sink = c.dlse = true;
  compare<bfloat16>(exec, c, score::none{});
  c.mask = any_mask::causal;
  compare<bfloat16>(exec, c, score::softcap{5});
  c.order = layout::swapped;
  compare<bfloat16>(exec, c, score::none{});
}

} // namespace

TEST_CASE("99 KB a block, head dimension 64") { all_masks(cuda::head_dims<64>, 64); }
TEST_CASE("99 KB a block, head dimension 128") { all_masks(cuda::head_dims<128>, 128); }
TEST_CASE("99 KB a block, head dimension 256") { all_masks(cuda::head_dims<256>, 256); }

TEST_CASE("a block of less shared memory than any shape needs is an error") {
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::head_dims<64>)
                        .with({.kernel = cuda::kernel::portable, .shared_memory = 32 * 1024});
  const tensor<bfloat16, 4> x{{1, 1, 40, 64}};
  const on_device<bfloat16, 4> q{x}, out{x}, dq{x}, dk{x}, dv{x};
  const on_device<float, 3> lse{tensor<float, 3>{{1, 1, 40}}};
  CHECK_THROWS_AS(backward(exec, saved{*q, *q, *q, *out, *lse}, upstream{*q},
                           gradients{*dq, *dk, *dv}, mask::causal{}),
                  std::invalid_argument);
}

} // namespace maskring::testing
