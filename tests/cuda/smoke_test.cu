// SPDX-License-Identifier: Apache-2.0
// The least that shows the device part to work; compiled also where there is no GPU to run it.
#include "support/tensor.hpp"

#include <maskring/cpu/host.hpp>
#include <maskring/cuda/backward.cuh>
#include <maskring/cuda/forward.cuh>
#include <maskring/mask/compose.hpp>

#include <doctest/doctest.h>

using namespace maskring;
using maskring::testing::max_error;
using maskring::testing::random_tensor;
using maskring::testing::tensor;

namespace smoke {

/// A user's mask: look back, and the first tokens always.
struct sink_window {
  int width, sinks;
  constexpr auto operator()(auto, auto, auto q, auto kv) const {
    return (q >= kv) & ((q - kv <= width) | (kv < sinks));
  }
};

/// A copy of a dense tensor in device memory.
template <class T, int Rank>
class device_tensor {
public:
  explicit device_tensor(tensor<T, Rank> host) : host_{std::move(host)} {
    maskring::cuda::detail::require_cuda(cudaMalloc(&data_, bytes()), "cudaMalloc");
    maskring::cuda::detail::require_cuda(
        cudaMemcpy(data_, host_.storage().data(), bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  device_tensor(const device_tensor&) = delete;
  device_tensor& operator=(const device_tensor&) = delete;
  ~device_tensor() { cudaFree(data_); }

  view<T, Rank> operator*() const {
    view<T, Rank> out;
    out.data = data_;
    std::copy_n(host_.span().extents, Rank, out.extents);
    std::copy_n(host_.span().strides, Rank, out.strides);
    return out;
  }
  const tensor<T, Rank>& fetch() {
    maskring::cuda::detail::require_cuda(
        cudaMemcpy(host_.storage().data(), data_, bytes(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return host_;
  }
  const tensor<T, Rank>& host() const { return host_; }

private:
  std::size_t bytes() const { return host_.storage().size() * sizeof(T); }
  tensor<T, Rank> host_;
  T* data_ = nullptr;
};

} // namespace smoke

using smoke::device_tensor;
using smoke::sink_window;

TEST_CASE("a custom mask on the device agrees with the host, forward and backward") {
  std::mt19937_64 random{7};
  constexpr index_t batch = 2, heads = 4, kv_heads = 2, tokens = 333, dim = 64;
  const std::array<index_t, 4> q_shape{batch, heads, tokens, dim};
  const std::array<index_t, 4> kv_shape{batch, kv_heads, tokens, dim};
  using element = bfloat16;
  device_tensor q{random_tensor<element, 4>(random, q_shape)};
  device_tensor k{random_tensor<element, 4>(random, kv_shape)};
  device_tensor v{random_tensor<element, 4>(random, kv_shape)};
  device_tensor dout{random_tensor<element, 4>(random, q_shape)};
  device_tensor out{tensor<element, 4>{q_shape}};
  device_tensor lse{tensor<float, 3>{{batch, heads, tokens}}};
  device_tensor dq{tensor<float, 4>{q_shape}};
  device_tensor dk{tensor<float, 4>{kv_shape}};
  device_tensor dv{tensor<float, 4>{kv_shape}};
  const sink_window mask{100, 5};

  maskring::cuda::workspace scratch;
  const auto exec = maskring::cuda::on(nullptr, scratch, maskring::cuda::head_dims<64>);
  forward(exec, inputs{*q, *k, *v}, results{*out, *lse}, mask);
  backward(exec, saved{*q, *k, *v, *out, *lse}, upstream{*dout}, gradients{*dq, *dk, *dv}, mask);
  maskring::cuda::detail::require_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");

  tensor<float, 4> host_out{q_shape}, host_dq{q_shape}, host_dk{kv_shape}, host_dv{kv_shape};
  tensor<float, 3> host_lse{{batch, heads, tokens}};
  forward(host(), inputs{*q.host(), *k.host(), *v.host()}, results{*host_out, *host_lse}, mask);
  backward(host(), saved{*q.host(), *k.host(), *v.host(), *host_out, *host_lse},
           upstream{*dout.host()}, gradients{*host_dq, *host_dk, *host_dv}, mask);

  // Rounding of probabilities and results to 8 bits; an H200 stays below half of it.
  CHECK(max_error(out.fetch(), host_out) < 0.02);
  CHECK(max_error(lse.fetch(), host_lse) < 1e-5);
  CHECK(max_error(dq.fetch(), host_dq) < 0.02);
  CHECK(max_error(dk.fetch(), host_dk) < 0.02);
  CHECK(max_error(dv.fetch(), host_dv) < 0.03);
}
