// SPDX-License-Identifier: Apache-2.0
// The job on GPUs: one call, or ranks that are threads and share the devices there are.
#include "device.cuh"
#include "support/any_on_device.cuh"

#include <maskring/comm/local.cuh>
#include <maskring/cp/automatic.hpp>
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
        } else if (s.method == "automatic") {
          run_rank(cp::automatic{comm, plan, shape, shards, m.mask, m.score}, mine);
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
