// SPDX-License-Identifier: Apache-2.0
// Runs a case of attention on the device and compares it with the fp64 reference.
#pragma once

#include "../support/straightforward.hpp"

#include <doctest/doctest.h>

#include <maskring/cuda/backward.cuh>
#include <maskring/cuda/forward.cuh>
#include <maskring/mask/concepts.hpp>

#include <cstring>

namespace maskring::testing {

/// Whether the device is of compute capability 9.0; says so if not.
inline bool is_hopper() {
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  if (major != 9) MESSAGE("skipped: no GPU of compute capability 9.0");
  return major == 9;
}

/// A tensor of the host's, copied to device memory with its strides.
template <class T, int Rank>
class on_device {
public:
  explicit on_device(const tensor<T, Rank>& from) : layout_{from.span()} {
    bytes_ = from.storage().size() * sizeof(T);
    REQUIRE(cudaMalloc(&data_, bytes_) == cudaSuccess);
    REQUIRE(cudaMemcpy(data_, from.storage().data(), bytes_, cudaMemcpyHostToDevice) ==
            cudaSuccess);
    layout_.data = nullptr;
  }
  on_device(on_device&&) = delete;
  ~on_device() { cudaFree(data_); }

  view<T, Rank> operator*() const {
    return {static_cast<T*>(data_), layout_.extents, layout_.strides};
  }
  std::pair<void*, std::size_t> memory() const { return {data_, bytes_}; }
  void read(tensor<T, Rank>& to) const {
    REQUIRE(cudaMemcpy(to.storage().data(), data_, bytes_, cudaMemcpyDeviceToHost) == cudaSuccess);
  }
  std::vector<unsigned char> bits() const {
    std::vector<unsigned char> out(bytes_);
    REQUIRE(cudaMemcpy(out.data(), data_, bytes_, cudaMemcpyDeviceToHost) == cudaSuccess);
    return out;
  }

private:
  view<const T, Rank> layout_;
  std::size_t bytes_ = 0;
  void* data_ = nullptr;
};

/// Several masks behind one type, so that one set of kernels serves all of them.
struct any_mask {
  enum { full, causal, window, blocks, nothing_late, per_head, scattered };
  int kind = full;

  constexpr auto operator()(auto b, auto h, auto q, auto kv) const -> decltype(q >= kv) {
    using result = decltype(q >= kv);
    switch (kind) {
    case causal:
      return q >= kv;
    case window:
      return within(q - kv, -3, 40);
    case blocks:
      return floor_div(q, 37) == floor_div(kv, 37);
    case nothing_late:
      return (q < 30) & (kv < 50); // most rows see nothing
    case per_head:
      return within(q - kv, 0, 20 + h * 15 + b * 40);
    case scattered: // no structure: left to the elements
      if constexpr (std::is_same_v<result, bool>) {
        return (q * 7 + kv * 13 + h) % 5 < 2;
      } else {
        return verdict::some;
      }
    default:
      return result{true};
    }
  }
};

/// Several score modifiers behind one type.
struct any_score {
  enum { identity, softcap, distance };
  int kind = identity;

  template <class S>
  constexpr S operator()(S s, int, int h, int q, int kv) const {
    switch (kind) {
    case softcap:
      return S(2) * tanh(s / S(2));
    case distance:
      return s - S(0.02f * static_cast<float>((h + 1) * abs(q - kv)));
    default:
      return s;
    }
  }
};

struct attention_case {
  int mask = any_mask::causal;
  index_t batch = 1, q_heads = 2, kv_heads = 2, q_len = 150, kv_len = 150, qk_dim = 64, v_dim = 64;
  layout order = layout::dense;
  bool sink = false, dlse = false;
  tile_shape tile{.q = 0, .kv = 0}; ///< of a block map made beforehand, if not 0
};

/// By how much the error may exceed the straightforward computation's.
struct allowance {
  double out = 1.1, dq = 2.5, dk = 4, dv = 4;
};

/// Runs the case forward, and backward if `Backward`, under `mask` and compares.
template <class T, bool Backward, class Executor, class Mask, class Score>
void compare_with(const Executor& exec, const attention_case& c, const Mask& mask,
                  const Score& score, const allowance& allowed = {}, unsigned seed = 1) {
  CAPTURE(c.mask);
  CAPTURE(c.q_len);
  CAPTURE(c.kv_len);
  CAPTURE(c.qk_dim);
  CAPTURE(c.v_dim);
  CAPTURE(c.q_heads);
  CAPTURE(c.kv_heads);
  CAPTURE(seed);
  std::mt19937_64 random{seed};
  const auto normal = [&](index_t heads, index_t rows, index_t dim) {
    return random_tensor<T, 4>(random, {c.batch, heads, rows, dim}, c.order);
  };
  const auto poison = [](auto&& t) {
    for (auto& x : t.storage()) x = std::decay_t<decltype(x)>(std::nanf(""));
    return std::move(t);
  };
  const auto q = normal(c.q_heads, c.q_len, c.qk_dim), k = normal(c.kv_heads, c.kv_len, c.qk_dim);
  const auto v = normal(c.kv_heads, c.kv_len, c.v_dim), dout = normal(c.q_heads, c.q_len, c.v_dim);
  const auto sink = random_tensor<float, 1>(random, {c.q_heads});
  const auto dlse = random_tensor<float, 3>(random, {c.batch, c.q_heads, c.q_len});

  inputs host{*q, *k, *v};
  upstream above{*dout};
  if (c.sink) host = host.with_sink(*sink);
  if (c.dlse) above.dlse = *dlse;
  const reference_results expected = reference_forward(host, mask, score);
  const reference_gradients slopes = reference_backward(host, above, mask, score);
  const auto usual = straightforward(host, *dout, above.dlse, mask, score,
                                     1 / std::sqrt(static_cast<float>(c.qk_dim)));

  const on_device<T, 4> dq_in{q}, dk_in{k}, dv_in{v}, ddout{dout};
  const on_device<float, 1> dsink_in{sink};
  const on_device<float, 3> ddlse{dlse};
  tensor<T, 4> out = poison(tensor<T, 4>{{c.batch, c.q_heads, c.q_len, c.v_dim}, c.order});
  tensor<float, 3> lse = poison(tensor<float, 3>{{c.batch, c.q_heads, c.q_len}});
  tensor<T, 4> dq = poison(tensor<T, 4>{{c.batch, c.q_heads, c.q_len, c.qk_dim}, c.order});
  tensor<T, 4> dk = poison(tensor<T, 4>{{c.batch, c.kv_heads, c.kv_len, c.qk_dim}, c.order});
  tensor<T, 4> dv = poison(tensor<T, 4>{{c.batch, c.kv_heads, c.kv_len, c.v_dim}, c.order});
  tensor<float, 1> dsink = poison(tensor<float, 1>{{c.q_heads}});
  const on_device<T, 4> d_out{out}, d_dq{dq}, d_dk{dk}, d_dv{dv};
  const on_device<float, 3> d_lse{lse};
  const on_device<float, 1> d_dsink{dsink};

  inputs in{*dq_in, *dk_in, *dv_in};
  saved kept{*dq_in, *dk_in, *dv_in, *d_out, *d_lse};
  upstream up{*ddout};
  gradients grad{*d_dq, *d_dk, *d_dv};
  if (c.sink) {
    in = in.with_sink(*dsink_in);
    kept = kept.with_sink(*dsink_in);
    grad = grad.with_sink(*d_dsink);
  }
  if (c.dlse) up.dlse = *ddlse;
  if (c.tile.q > 0) {
    const map_shape shape{c.batch, c.q_heads, c.q_len, c.kv_len};
    const auto map = cuda::make_block_map(exec, mask, shape, c.tile);
    forward(exec, in, results{*d_out, *d_lse}, mask, map.view(), score);
  } else {
    forward(exec, in, results{*d_out, *d_lse}, mask, score);
  }
  d_out.read(out), d_lse.read(lse);
  CHECK(max_error(lse, expected.lse) < 2e-3);
  const auto close = [&](const char* name, const auto& got, const auto& straight, const auto& exact,
                         double times) {
    CAPTURE(std::string{name});
    const double yardstick = relative_error(straight, exact);
    CHECK(relative_error(got, exact) <= times * yardstick + 1e-7);
  };
  close("out", out, usual.out, expected.out, allowed.out);
  if constexpr (Backward) {
    backward(exec, kept, up, grad, mask, score);
    const auto first_bits = d_dq.bits();
    d_dq.read(dq), d_dk.read(dk), d_dv.read(dv);
    close("dq", dq, usual.dq, slopes.dq, allowed.dq);
    close("dk", dk, usual.dk, slopes.dk, allowed.dk);
    close("dv", dv, usual.dv, slopes.dv, allowed.dv);
    if (c.sink) {
      d_dsink.read(dsink);
      for (index_t h = 0; h < c.q_heads; ++h) {
        CHECK(static_cast<double>(dsink(h)) ==
              doctest::Approx(slopes.dsink(h)).epsilon(0.02).scale(1.0));
      }
    }
    backward(exec, kept, up, grad, mask, score);
    CHECK(d_dq.bits() == first_bits);
  }
}

template <class T, class Executor, class Score>
void compare(const Executor& exec, const attention_case& c, const Score& score,
             const allowance& allowed = {}, unsigned seed = 1) {
  compare_with<T, true>(exec, c, any_mask{c.mask}, score, allowed, seed);
}

} // namespace maskring::testing
