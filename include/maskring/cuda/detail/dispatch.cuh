// SPDX-License-Identifier: Apache-2.0
// From a call's run-time head dimensions to a kernel compiled for them, and its block map.
#pragma once

#include <maskring/cuda/block_map.cuh>
#include <maskring/cuda/detail/device.cuh>
#include <maskring/cuda/executor.cuh>
#include <maskring/mask/basic.hpp>

#include <algorithm>
#include <type_traits>

namespace maskring::cuda::detail {

/// Calls `run` with the first of the dimensions that holds the problem's.
/// @throws std::invalid_argument if none does.
template <class... Dims, class Run>
void with_head_dim(const char* call, const problem& p, head_dim_list<Dims...>, Run&& run) {
  static_assert(sizeof...(Dims) > 0, "maskring: name at least one head dimension");
  const bool found =
      ((p.qk_dim <= Dims::qk && p.v_dim <= Dims::v ? (run(Dims{}), true) : false) || ...);
  maskring::detail::require(found, call, ": head dimensions are ", p.qk_dim, " (q, k) and ",
                            p.v_dim, " (v), expected at most ", std::max({Dims::qk...}), " and ",
                            std::max({Dims::v...}), " (cuda::head_dims names more)");
}

/// Calls `run` with the block map of a mask, in device memory until the queued work is done;
/// without one for a mask that keeps everything.
template <class Executor, class Mask, class Run>
void with_block_map(const char* call, const Executor& exec, const Mask& mask, const problem& p,
                    tile_shape tile, Run&& run) {
  if constexpr (std::is_same_v<Mask, mask::full>) {
    block_map_view everything;
    everything.q_len = p.q_len;
    everything.kv_len = p.kv_len;
    everything.tile = tile;
    run(everything);
  } else {
    if (is_capturing(exec.stream())) {
      throw std::logic_error{std::string{"maskring: "} + call +
                             ": the stream is captured and building the block map waits for it: "
                             "make the map before (cuda::make_block_map) and pass it"};
    }
    const block_map map = make_block_map(exec, mask, {p.batch, p.q_heads, p.q_len, p.kv_len}, tile);
    run(map.view());
  }
}

} // namespace maskring::cuda::detail
