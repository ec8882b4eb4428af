// SPDX-License-Identifier: Apache-2.0
// The job's calls on a GPU, of one rank or of a driver.
#pragma once

#include "problem.hpp"

#include <maskring/cp/cuda.cuh>

namespace flex {

using namespace maskring;

/// The masks that the programs have kernels for, behind one type.
struct device_mask {
  enum { full, causal, window, prefix } kind = full;
  int argument = 0;

  constexpr auto operator()(auto, auto, auto q, auto kv) const -> decltype(q >= kv) {
    switch (kind) {
    case causal:
      return q >= kv;
    case window:
      return (q >= kv) & (q - kv <= argument);
    case prefix:
      return (q >= kv) | (kv < argument);
    default:
      return decltype(q >= kv){true};
    }
  }
};

inline device_mask mask_named(const settings& s) {
  const auto colon = s.mask.find(':');
  const std::string name = s.mask.substr(0, colon);
  const auto argument = [&] {
    return colon == std::string::npos ? 0 : std::stoi(s.mask.substr(colon + 1));
  };
  if (name == "full") return {};
  if (name == "causal") return {device_mask::causal, 0};
  if (name == "sliding_window") return {device_mask::window, argument()};
  if (name == "prefix_lm") return {device_mask::prefix, argument()};
  throw std::invalid_argument("--mask is " + s.mask +
                              ", expected full, causal, sliding_window:W or prefix_lm:P on GPUs "
                              "(the kernels are compiled for these)");
}

/// A host array's copy on the device.
class on_device {
public:
  explicit on_device(const array<float>& from)
      : shape_{from.shape[0], from.shape[1], from.shape[2], from.shape[3]}, memory_{bytes(from)} {
    comm::detail::require_cuda(
        cudaMemcpy(memory_.data(), from.data.data(), bytes(from), cudaMemcpyHostToDevice),
        "cudaMemcpy");
  }
  view<float, 4> span() const { return {static_cast<float*>(memory_.data()), shape_}; }
  view<const float, 4> read() const { return span(); }
  void store(array<float>& to) const {
    comm::detail::require_cuda(
        cudaMemcpy(to.data.data(), memory_.data(), bytes(to), cudaMemcpyDeviceToHost),
        "cudaMemcpy");
  }

private:
  static std::size_t bytes(const array<float>& a) { return a.data.size() * sizeof(float); }
  index_t shape_[4];
  comm::detail::device_memory memory_;
};

/// Runs forward(exec, inputs, results) and backward(exec, saved, upstream, gradients) on a copy of
/// x on the device.
template <class Forward, class Backward>
void run(whole<float>& x, Forward forward, Backward backward) {
  const on_device q{x.q}, k{x.k}, v{x.v}, dout{x.dout}, out{x.out}, dq{x.dq}, dk{x.dk}, dv{x.dv};
  const comm::detail::device_memory rows{x.lse.size() * sizeof(float)};
  const view<float, 3> lse{static_cast<float*>(rows.data()),
                           {x.q.shape[0], x.q.shape[1], x.q.shape[2]}};
  const comm::detail::stream stream = comm::detail::make_stream();
  {
    maskring::cuda::workspace scratch;
    const auto exec = maskring::cuda::on(stream.get(), scratch, maskring::cuda::head_dims<64>);
    forward(exec, inputs{q.read(), k.read(), v.read()}, results{out.span(), lse});
    backward(exec, saved{q.read(), k.read(), v.read(), out.read(), lse}, upstream{dout.read()},
             gradients{dq.span(), dk.span(), dv.span()});
    comm::detail::require_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
  }
  out.store(x.out);
  dq.store(x.dq);
  dk.store(x.dk);
  dv.store(x.dv);
}

template <class Driver>
void run_rank(Driver&& driver, whole<float>& mine) {
  run(
      mine, [&](const auto& exec, const auto& in, const auto& to) { driver.forward(exec, in, to); },
      [&](const auto& exec, const auto& in, const auto& up, const auto& to) {
        driver.backward(exec, in, up, to);
      });
}

} // namespace flex
