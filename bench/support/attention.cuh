// SPDX-License-Identifier: Apache-2.0
// Times forward and backward of one case on random data.
#pragma once

#include "device_timer.cuh"
#include "report.hpp"

#include <maskring/block/build.hpp>
#include <maskring/cuda/backward.cuh>
#include <maskring/cuda/block_map.cuh>
#include <maskring/cuda/forward.cuh>
#include <maskring/mask/basic.hpp>
#include <maskring/score/concepts.hpp>

#include <cuda_bf16.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace bench {

namespace mr = maskring;

/// Normal random numbers by the method of Box and Muller, from a hash of seed and position.
template <class T>
__global__ void fill_normal(T* out, std::size_t count, std::uint32_t seed) {
  const auto uniform = [&](std::uint64_t x) {
    x = (x + seed) * 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 31)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 29)) * 0x94d049bb133111ebull;
    return (static_cast<float>(x >> 40) + 0.5f) / static_cast<float>(1 << 24);
  };
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count;
       i += std::size_t{gridDim.x} * blockDim.x) {
    out[i] = static_cast<T>(sqrtf(-2 * logf(uniform(2 * i))) * cospif(2 * uniform(2 * i + 1)));
  }
}

inline const char* kernel_name(mr::cuda::kernel kernel) {
  return kernel == mr::cuda::kernel::portable ? "portable"
         : kernel == mr::cuda::kernel::hopper ? "hopper"
                                              : "automatic";
}

/// The policy that `--kernel automatic|portable|hopper` and `--deterministic 0|1` name.
inline mr::cuda::policy policy_argument(int count, char** arguments) {
  mr::cuda::policy policy;
  policy.deterministic = argument(count, arguments, "deterministic", "1") != "0";
  const std::string wanted = argument(count, arguments, "kernel", "automatic");
  for (const auto kernel :
       {mr::cuda::kernel::automatic, mr::cuda::kernel::portable, mr::cuda::kernel::hopper}) {
    policy.kernel = kernel;
    if (wanted == kernel_name(kernel)) return policy;
  }
  throw std::invalid_argument{"--kernel is " + wanted + ", expected automatic, portable or hopper"};
}

struct attention_size {
  mr::index_t batch, heads, kv_heads, seq;
};

/// The pairs that a mask keeps, counted tile by tile. The mask must be readable by the host.
template <mr::mask_mod Mask>
double kept_pairs(const Mask& mask, mr::index_t seq) {
  const mr::block_map map = mr::make_block_map(mask, {1, 1, seq, seq});
  const mr::block_map_view& view = map.view();
  double pairs = 0;
  for (int i = 0; i < view.q_tiles(); ++i) {
    const mr::range q = mr::detail::tile_span(i, i + 1, view.tile.q, seq);
    for (const mr::tile_run* run = view.rows.begin(i); run != view.rows.end(i); ++run) {
      const mr::range kv = mr::detail::tile_span(run->first, run->end(), view.tile.kv, seq);
      if (!run->partial()) {
        pairs += static_cast<double>(q.hi - q.lo + 1) * static_cast<double>(kv.hi - kv.lo + 1);
        continue;
      }
      for (int row = static_cast<int>(q.lo); row <= q.hi; ++row) {
        for (int key = static_cast<int>(kv.lo); key <= kv.hi; ++key) {
          pairs += static_cast<bool>(mask(0, 0, row, key));
        }
      }
    }
  }
  return pairs;
}

/// Runs cases of one element type and head dimension and reports them.
template <class T, int Dim>
class attention_bench {
public:
  attention_bench(report& out, device_timer& timer, const mr::cuda::policy& policy)
      : report_{out}, timer_{timer}, policy_{policy} {}

  template <mr::mask_mod Mask, class Score = mr::score::none>
  void run(const std::string& name, const Mask& mask, const attention_size& size,
           const std::string& score_name = "none", const Score& score = {}) {
    run_table(name, mask, mask, size, score_name, score);
  }

  /// For masks that read tables: `mask` reads device memory, `on_host` the same tables on the host.
  template <mr::mask_mod Mask, class Score = mr::score::none>
  void run_table(const std::string& name, const Mask& mask, const Mask& on_host,
                 const attention_size& size, const std::string& score_name = "none",
                 const Score& score = {}) {
    const tensor q{timer_, size.batch, size.heads, size.seq, 1};
    const tensor k{timer_, size.batch, size.kv_heads, size.seq, 2};
    const tensor v{timer_, size.batch, size.kv_heads, size.seq, 3};
    const tensor dout{timer_, size.batch, size.heads, size.seq, 4};
    const tensor out{timer_, size.batch, size.heads, size.seq, 5};
    const device_array<float> lse(static_cast<std::size_t>(size.batch * size.heads * size.seq));
    const mr::view<float, 3> lse_view{lse.data(), {size.batch, size.heads, size.seq}};
    const auto exec =
        mr::cuda::on(timer_.stream(), workspace_, mr::cuda::unpacked(mr::cuda::head_dims<Dim>))
            .with(policy_);
    const mr::map_shape shape{size.batch, size.heads, size.seq, size.seq};
    const auto map = mr::cuda::make_block_map(exec, mask, shape);
    const auto forward_map = mr::cuda::make_block_map(
        exec, mask, shape,
        mr::cuda::forward_tile<Mask, Score>(exec, mr::index_t{Dim}, mr::index_t{Dim}));
    const double flops =
        4 * kept_pairs(on_host, size.seq) * Dim * static_cast<double>(size.batch * size.heads);
    const auto add = [&](const char* what, double ms, double work) {
      report_.add(record{}
                      .text("what", what)
                      .text("kernel", kernel_name(policy_.kernel))
                      .integer("deterministic", policy_.deterministic)
                      .text("mask", name)
                      .text("score", score_name)
                      .text("type", std::is_same_v<T, __nv_bfloat16> ? "bfloat16" : "half")
                      .integer("batch", size.batch)
                      .integer("heads", size.heads)
                      .integer("kv_heads", size.kv_heads)
                      .integer("seq", size.seq)
                      .integer("dim", Dim)
                      .number("ms", ms)
                      .number("flops", work)
                      .number("tflops", work / ms / 1e9));
    };
    const mr::inputs in{q.read(), k.read(), v.read()};
    const mr::results results{out.view(), lse_view};
    const auto forward = [&](const auto&... tiles) {
      mr::forward(exec, in, results, mask, tiles..., score);
    };
    add("forward", timer_.median_ms([&] { with_map<Mask>(forward, forward_map); }), flops);

    const tensor dq{timer_, size.batch, size.heads, size.seq, 6};
    const tensor dk{timer_, size.batch, size.kv_heads, size.seq, 7};
    const tensor dv{timer_, size.batch, size.kv_heads, size.seq, 8};
    const mr::saved saved{q.read(), k.read(), v.read(), out.read(), lse_view};
    const mr::gradients gradients{dq.view(), dk.view(), dv.view()};
    const auto backward = [&](const auto&... tiles) {
      mr::backward(exec, saved, mr::upstream{dout.read()}, gradients, mask, tiles..., score);
    };
    add("backward", timer_.median_ms([&] { with_map<Mask>(backward, map); }), 2.5 * flops);
  }

private:
  // The full mask needs no map, and calls without one are faster.
  template <class Mask, class Call>
  static void with_map(const Call& call, const mr::block_map_view& map) {
    if constexpr (std::is_same_v<Mask, mr::mask::full>) {
      call();
    } else {
      call(map);
    }
  }

  class tensor {
  public:
    tensor(const device_timer& timer, mr::index_t batch, mr::index_t heads, mr::index_t seq,
           std::uint32_t seed)
        : shape_{batch, heads, seq, Dim},
          memory_(static_cast<std::size_t>(batch * heads * seq * Dim)) {
      fill_normal<<<1024, 256, 0, timer.stream()>>>(memory_.data(), memory_.size(), seed);
    }
    mr::view<T, 4> view() const { return {memory_.data(), shape_}; }
    mr::view<const T, 4> read() const { return {memory_.data(), shape_}; }

  private:
    mr::index_t shape_[4];
    device_array<T> memory_;
  };

  report& report_;
  device_timer& timer_;
  mr::cuda::policy policy_;
  mr::cuda::workspace workspace_;
};

} // namespace bench
