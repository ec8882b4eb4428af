// SPDX-License-Identifier: Apache-2.0
// The job on GPUs: one call, or ranks that are threads and share the devices there are.
#include "device.cuh"

#include <maskring/comm/local.cuh>
#include <maskring/cp/all_gather.hpp>
#include <maskring/cp/ring.hpp>
#include <maskring/cp/ulysses.hpp>

namespace flex {
namespace {

using namespace maskring;

void require_no_score(const examples::any_score* score) {
  if (score) throw std::invalid_argument("--score: expected none with --device cuda");
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
        for (const auto part :
             {&whole<float>::q, &whole<float>::k, &whole<float>::v, &whole<float>::dout}) {
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
