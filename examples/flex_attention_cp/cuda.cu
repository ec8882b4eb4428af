// SPDX-License-Identifier: Apache-2.0
// The job on GPUs: one call, or ranks that are threads and share the devices there are.
#include "problem.hpp"
#include "support/any_on_device.cuh"

#include <maskring/comm/local.cuh>
#include <maskring/cp/all_gather.hpp>
#include <maskring/cp/cuda.cuh>
#include <maskring/cp/ring.hpp>
#include <maskring/cp/ulysses.hpp>

namespace flex {
namespace {

using namespace maskring;

/// The mask and the score modifier of the settings on the current device, with their tables.
class modifiers {
public:
  explicit modifiers(const settings& s)
      : masks_{shape_of(s)}, scores_{shape_of(s)}, mask{masks_(s.mask)}, score{scores_(s.score)} {}

private:
  static examples::mask_shape shape_of(const settings& s) {
    return {s.n.batch, s.n.heads, s.n.tokens, s.n.tokens};
  }
  examples::named_masks<examples::device_masks> masks_;
  examples::named_scores<examples::device_scores> scores_;

public:
  const examples::device_mask mask;
  const examples::device_score score;
};

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

void local(const settings& s, const examples::any_mask&, const examples::any_score*,
           whole<float>& x) {
  const modifiers m{s};
  run(
      x,
      [&](const auto& exec, const auto& in, const auto& to) {
        forward(exec, in, to, m.mask, m.score);
      },
      [&](const auto& exec, const auto& in, const auto& up, const auto& to) {
        backward(exec, in, up, to, m.mask, m.score);
      });
}

template <class Driver>
void run_rank(Driver driver, whole<float>& mine) {
  run(
      mine, [&](const auto& exec, const auto& in, const auto& to) { driver.forward(exec, in, to); },
      [&](const auto& exec, const auto& in, const auto& up, const auto& to) {
        driver.backward(exec, in, up, to);
      });
}

void split(const settings& s, const examples::any_mask& mask, const examples::any_score*,
           const examples::any_layout& layout, whole<float>& x) {
  const cp::shape shape{s.n.batch, s.n.heads, s.n.kv_heads, s.n.dim, s.n.v_dim};
  const cp::shards shards{layout};
  const cp::plan plan{mask, shape, shards}; // from the mask that the host can ask
  comm::local_options how;
  int devices = 0;
  comm::detail::require_cuda(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  for (int i = 0; i < devices; ++i) how.devices.push_back(i);
  comm::run_local(
      s.ranks,
      [&](comm::local& comm) {
        const int rank = comm.rank();
        whole<float> mine{s.n, static_cast<int>(layout.size(rank))};
        for (const auto part :
             {&whole<float>::q, &whole<float>::k, &whole<float>::v, &whole<float>::dout}) {
          each_token(x.*part, mine.*part, layout.map(rank),
                     [](float* all, float* one, int dim) { std::copy_n(all, dim, one); });
        }
        const modifiers m{s};
        if (s.method == "ring") {
          run_rank(cp::ring{comm, plan, shape, shards, m.mask, m.score}, mine);
        } else if (s.method == "all-gather") {
          run_rank(cp::all_gather{comm, plan, shape, shards, m.mask, m.score}, mine);
        } else {
          run_rank(cp::ulysses{comm, plan, shape, shards, m.mask, m.score}, mine);
        }
        for (const auto part :
             {&whole<float>::out, &whole<float>::dq, &whole<float>::dk, &whole<float>::dv}) {
          each_token(x.*part, mine.*part, layout.map(rank),
                     [](float* all, float* one, int dim) { std::copy_n(one, dim, all); });
        }
      },
      how);
}

} // namespace

const device_calls on_cuda{local, split};

} // namespace flex
