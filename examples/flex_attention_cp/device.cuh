// SPDX-License-Identifier: Apache-2.0
// The job's calls on a GPU, of one rank or of a driver.
#pragma once

#include "problem.hpp"

#include <maskring/cp/cuda.cuh>

namespace flex {

using namespace maskring;

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
  // Copies of pageable memory may end after the call; the new stream does not wait for them.
  comm::detail::require_cuda(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
  {
    maskring::cuda::workspace scratch;
    const auto exec = maskring::cuda::on(stream.get(), scratch,
                                         maskring::cuda::unpacked(maskring::cuda::head_dims<64>));
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
