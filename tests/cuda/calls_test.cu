// SPDX-License-Identifier: Apache-2.0
// fp32 elements, carried states, accumulated gradients, graphs and errors of the device calls.
#include "attention.cuh"

#include <maskring/mask/compose.hpp>

#include <stdexcept>
#include <string>

namespace maskring::testing {
TEST_CASE("fp32 elements are computed at fp32 accuracy") {
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::unpacked(cuda::head_dims<64>));
  const allowance four{4, 4, 4, 4};
  for (int mask = any_mask::full; mask <= any_mask::scattered; ++mask) {
    compare<float>(exec, {.mask = mask}, any_score{}, four);
  }
  compare<float>(exec,
                 {.mask = any_mask::per_head,
                  .batch = 2,
                  .q_heads = 6,
                  .kv_heads = 2,
                  .q_len = 77,
                  .kv_len = 301,
                  .qk_dim = 40,
                  .v_dim = 36,
                  .sink = true,
                  .dlse = true},
                 any_score{any_score::softcap}, four);
  compare<float>(exec,
                 {.mask = any_mask::blocks,
                  .q_len = 129,
                  .kv_len = 200,
                  .qk_dim = 33,
                  .v_dim = 17,
                  .order = layout::swapped},
                 any_score{any_score::distance}, four);
}

TEST_CASE("TF32 is a policy") {
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::unpacked(cuda::head_dims<64>))
                        .with({.float_math = cuda::float_math::tf32});
  const allowance coarse{2e4, 2e4, 2e4, 2e4}; // of an fp32 error near 1e-7
  compare<float>(exec, {.mask = any_mask::causal}, any_score{}, coarse);
  compare<float>(exec, {.mask = any_mask::scattered, .q_len = 90, .kv_len = 200}, any_score{},
                 coarse);
}

namespace {

/// One problem in bfloat16 on the device, with room for everything.
struct problem_on_device {
  static constexpr index_t heads = 4, kv_heads = 2, length = 260, keys = 280, dim = 64;
  std::mt19937_64 random{7};
  tensor<bfloat16, 4> q = random_tensor<bfloat16, 4>(random, {1, heads, length, dim});
  tensor<bfloat16, 4> k = random_tensor<bfloat16, 4>(random, {1, kv_heads, keys, dim});
  tensor<bfloat16, 4> v = random_tensor<bfloat16, 4>(random, {1, kv_heads, keys, dim});
  tensor<bfloat16, 4> dout = random_tensor<bfloat16, 4>(random, {1, heads, length, dim});
  tensor<float, 4> out{{1, heads, length, dim}};
  tensor<float, 4> dq{{1, heads, length, dim}}, dk{{1, kv_heads, keys, dim}},
      dv{{1, kv_heads, keys, dim}};
  tensor<float, 3> lse{{1, heads, length}};
  on_device<bfloat16, 4> q_d{q}, k_d{k}, v_d{v}, dout_d{dout};
  on_device<float, 4> out_d{out}, dq_d{dq}, dk_d{dk}, dv_d{dv};
  on_device<float, 3> lse_d{lse};
};

} // namespace

TEST_CASE("carried states: keys in two calls, fp32 output, gradients accumulated") {
  problem_on_device p;
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::unpacked(cuda::head_dims<64>))
                        .with({.kernel = cuda::kernel::portable});
  const any_mask mask{any_mask::causal};
  const inputs host{*p.q, *p.k, *p.v};
  const reference_results expected = reference_forward(host, mask);
  const reference_gradients slopes = reference_backward(host, upstream{*p.dout}, mask);

  constexpr index_t first = 150;
  const auto part = [&](const view<bfloat16, 4>& t, int n) {
    return n == 0 ? t.slice(2, 0, first) : t.slice(2, first, problem_on_device::keys - first);
  };
  const results out{*p.out_d, *p.lse_d};
  for (int n = 0; n < 2; ++n) {
    inputs in{*p.q_d, part(*p.k_d, n), part(*p.v_d, n)};
    if (n == 1) in = in.continuing({out.out, out.lse});
    forward(exec, in, out, mask::shift{mask, 0, n == 0 ? 0 : static_cast<int>(first)}, any_score{});
  }
  for (int n = 0; n < 2; ++n) {
    const auto rows = [&](const view<float, 4>& t) {
      return n == 0 ? t.slice(2, 0, first) : t.slice(2, first, problem_on_device::keys - first);
    };
    backward(exec, saved{*p.q_d, part(*p.k_d, n), part(*p.v_d, n), out.out, out.lse},
             upstream{*p.dout_d}, gradients{*p.dq_d, rows(*p.dk_d), rows(*p.dv_d)},
             mask::shift{mask, 0, n == 0 ? 0 : static_cast<int>(first)}, any_score{},
             {.accumulate = true});
  }
  p.out_d.read(p.out), p.lse_d.read(p.lse);
  p.dq_d.read(p.dq), p.dk_d.read(p.dk), p.dv_d.read(p.dv);
  CHECK(max_error(p.lse, expected.lse) < 1e-4);
  CHECK(relative_error(p.out, expected.out) < 4e-3);
  CHECK(relative_error(p.dq, slopes.dq) < 5e-3);
  CHECK(relative_error(p.dk, slopes.dk) < 5e-3);
  CHECK(relative_error(p.dv, slopes.dv) < 5e-3);
}

TEST_CASE("a captured graph of forward and backward replays to the same bits") {
  problem_on_device p;
  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  {
    cuda::workspace scratch; // goes before its stream
    const auto exec = cuda::on(stream, scratch, cuda::unpacked(cuda::head_dims<64>));
    const any_mask mask{any_mask::window};
    const auto map = cuda::make_block_map(
        exec, mask,
        {1, problem_on_device::heads, problem_on_device::length, problem_on_device::keys});
    const auto both = [&] {
      forward(exec, inputs{*p.q_d, *p.k_d, *p.v_d}, results{*p.out_d, *p.lse_d}, mask, map,
              any_score{});
      backward(exec, saved{*p.q_d, *p.k_d, *p.v_d, *p.out_d, *p.lse_d}, upstream{*p.dout_d},
               gradients{*p.dq_d, *p.dk_d, *p.dv_d}, mask, map, any_score{});
    };
    both();
    REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
    const auto bits = [&] {
      return std::vector{p.out_d.bits(), p.lse_d.bits(), p.dq_d.bits(), p.dk_d.bits(),
                         p.dv_d.bits()};
    };
    const auto first = bits();

    cudaGraph_t graph = nullptr;
    cudaGraphExec_t replay = nullptr;
    REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    both();
    cuda::workspace other;
    const auto cramped = cuda::on(stream, other, cuda::unpacked(cuda::head_dims<64>));
    CHECK_THROWS_AS(backward(cramped, saved{*p.q_d, *p.k_d, *p.v_d, *p.out_d, *p.lse_d},
                             upstream{*p.dout_d}, gradients{*p.dq_d, *p.dk_d, *p.dv_d}, mask, map,
                             any_score{}),
                    std::logic_error);
    REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    REQUIRE(cudaGraphInstantiate(&replay, graph, 0) == cudaSuccess);
    for (const auto* t : {&p.out_d, &p.dq_d, &p.dk_d, &p.dv_d}) {
      const auto v = **t;
      REQUIRE(cudaMemset(v.data, 0x7f, static_cast<std::size_t>(v.size()) * 4) == cudaSuccess);
    }
    for (int i = 0; i < 3; ++i) REQUIRE(cudaGraphLaunch(replay, stream) == cudaSuccess);
    REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
    CHECK(bits() == first);
    cudaGraphExecDestroy(replay);
    cudaGraphDestroy(graph);
  }
  cudaStreamDestroy(stream);
}

TEST_CASE("bad arguments are named before anything is queued") {
  problem_on_device p;
  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::unpacked(cuda::head_dims<64>));
  const any_mask mask{any_mask::causal};
  const auto message = [](auto&& call) -> std::string {
    try {
      call();
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return {};
  };
  const results out{*p.out_d, *p.lse_d};
  CHECK(message([&] {
          const auto narrow = cuda::on(nullptr, scratch, cuda::unpacked(cuda::head_dims<32>));
          forward(narrow, inputs{*p.q_d, *p.k_d, *p.v_d}, out, mask::full{});
        }).find("head dimensions are 64") != std::string::npos);
  CHECK(message([&] {
          const auto map = cuda::make_block_map(
              exec, mask, {1, 1, problem_on_device::length, problem_on_device::keys}, {100, 100});
          forward(exec, inputs{*p.q_d, *p.k_d, *p.v_d}, out, mask, map, any_score{});
        }).find("tiles of 100 x 100") != std::string::npos);
  CHECK(message([&] {
          const auto map = cuda::make_block_map(
              exec, mask, {1, 1, problem_on_device::length, problem_on_device::length});
          forward(exec, inputs{*p.q_d, *p.k_d, *p.v_d}, out, mask, map, any_score{});
        }).find("280") != std::string::npos);
  CHECK_THROWS_AS(scratch.reserve(std::size_t{1} << 60, nullptr), cuda::error);
  CHECK(cudaGetLastError() == cudaSuccess);
}

} // namespace maskring::testing
