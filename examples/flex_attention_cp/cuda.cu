// SPDX-License-Identifier: Apache-2.0
// The job on GPUs: one call, or ranks that are threads and share the devices there are.
#include "problem.hpp"

#include <maskring/comm/local.cuh>
#include <maskring/cp/all_gather.hpp>
#include <maskring/cp/cuda.cuh>
#include <maskring/cp/ring.hpp>
#include <maskring/cp/ulysses.hpp>
#include <maskring/mask/basic.hpp>

namespace flex {
namespace {

using namespace maskring;

/// The masks that this program has kernels for, behind one type.
struct device_mask {
  enum { full, causal, window, prefix } kind = full;
  int argument = 0;

  constexpr auto operator()(auto, auto, auto q, auto kv) const -> decltype(q >= kv) {
    switch (kind) {
    case causal: return q >= kv;
    case window: return (q >= kv) & (q - kv <= argument);
    case prefix: return (q >= kv) | (kv < argument);
    default: return decltype(q >= kv){true};
    }
  }
};

device_mask mask_named(const settings& s) {
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
                              ", expected full, causal, sliding_window:W or prefix_lm:P with --device "
                              "cuda (its kernels are compiled for these)");
}

void require_no_score(const examples::any_score* score) {
  if (score) throw std::invalid_argument("--score: expected none with --device cuda");
}

/// A host array's copy on the device.
class on_device {
public:
  explicit on_device(const array<float>& from) : shape_{from.shape[0], from.shape[1], from.shape[2], from.shape[3]}, memory_{bytes(from)} {
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

/// Runs forward(exec, inputs, results) and backward(exec, saved, upstream, gradients) on a copy of x
/// on the device.
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

void local(const settings& s, const examples::any_mask&, const examples::any_score* score,
           whole<float>& x) {
  require_no_score(score);
  const device_mask mask = mask_named(s);
  run(
      x, [&](const auto& exec, const auto& in, const auto& to) { forward(exec, in, to, mask); },
      [&](const auto& exec, const auto& in, const auto& up, const auto& to) {
        backward(exec, in, up, to, mask);
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

void split(const settings& s, const examples::any_mask&, const examples::any_score* score,
           const examples::any_layout& layout, whole<float>& x) {
  require_no_score(score);
  const device_mask mask = mask_named(s);
  const cp::shape shape{s.n.batch, s.n.heads, s.n.kv_heads, s.n.dim, s.n.v_dim};
  comm::local_options how;
  int devices = 0;
  comm::detail::require_cuda(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  for (int i = 0; i < devices; ++i) how.devices.push_back(i);
  comm::run_local(
      s.ranks,
      [&](comm::local& comm) {
        const int rank = comm.rank();
        whole<float> mine{s.n, static_cast<int>(layout.size(rank))};
        for (const auto part : {&whole<float>::q, &whole<float>::k, &whole<float>::v, &whole<float>::dout}) {
          each_token(x.*part, mine.*part, layout.map(rank),
                     [](float* all, float* one, int dim) { std::copy_n(all, dim, one); });
        }
        if (s.method == "ring") {
          run_rank(cp::ring{comm, shape, layout, mask}, mine);
        } else if (s.method == "all-gather") {
          run_rank(cp::all_gather{comm, shape, layout, mask}, mine);
        } else {
          run_rank(cp::ulysses{comm, shape, layout, mask}, mine);
        }
        for (const auto part : {&whole<float>::out, &whole<float>::dq, &whole<float>::dk, &whole<float>::dv}) {
          each_token(x.*part, mine.*part, layout.map(rank),
                     [](float* all, float* one, int dim) { std::copy_n(one, dim, all); });
        }
      },
      how);
}

} // namespace

const device_calls on_cuda{local, split};

} // namespace flex
