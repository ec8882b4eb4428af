// SPDX-License-Identifier: Apache-2.0
// The order in which a block map's rows should be worked on: longest first.
#pragma once

#include <maskring/block/map.hpp>
#include <maskring/cuda/error.hpp>

#include <cuda_runtime_api.h>

namespace maskring::cuda::detail::sm90 {

/// One block a layer: a stable counting sort of its rows by their number of tiles, descending.
///
/// Longer lists than `bins` tiles share bins; near ties need no order.
inline __global__ void __launch_bounds__(256)
    rank_rows_kernel(tile_rows rows, int q_tiles, int kv_tiles, int* longest) {
  constexpr int bins = 1024;
  __shared__ int begin[bins];
  const index_t first = index_t{blockIdx.x} * q_tiles;
  const auto bin = [&](int i) {
    index_t tiles = 0;
    for (const tile_run* run = rows.begin(first + i); run != rows.end(first + i); ++run) {
      tiles += run->count();
    }
    return bins - 1 - static_cast<int>(tiles * (bins - 1) / (kv_tiles > 0 ? kv_tiles : 1));
  };

  for (int b = static_cast<int>(threadIdx.x); b < bins; b += 256) begin[b] = 0;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < q_tiles; i += 256) atomicAdd(&begin[bin(i)], 1);
  __syncthreads();
  if (threadIdx.x >= 32) return;

  const int lane = static_cast<int>(threadIdx.x);
  int before = 0;
  for (int b = lane; b < bins; b += 32) {  // exclusive sums, 32 bins at a time
    int sum = begin[b];
    const int own = sum;
    for (int d = 1; d < 32; d *= 2) {
      const int left = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += left;
    }
    begin[b] = before + sum - own;
    before += __shfl_sync(~0u, sum, 31);
  }
  __syncwarp();
  for (int base = 0; base < q_tiles; base += 32) {  // in order, so equal rows keep theirs
    const bool present = base + lane < q_tiles;
    const int mine = present ? bin(base + lane) : -1;
    const unsigned same = __match_any_sync(~0u, mine);
    const int rank = __popc(same & ((1u << lane) - 1));
    if (present) longest[first + begin[mine] + rank] = base + lane;
    __syncwarp();
    if (present && rank == 0) begin[mine] += __popc(same);
    __syncwarp();
  }
}

/// Fills `longest`, [batch · heads · q_tiles] of the map, in device memory: per layer of the map its
/// query tiles by falling number of key tiles. Queued on `stream`; the map is in device memory.
inline void rank_rows(const block_map_view& map, int* longest, cudaStream_t stream) {
  const int layers = map.batch * map.heads;
  if (layers == 0 || map.q_tiles() == 0) return;
  rank_rows_kernel<<<layers, 256, 0, stream>>>(map.rows, map.q_tiles(), map.kv_tiles(), longest);
  require_cuda(cudaGetLastError(), "the launch of rank_rows_kernel");
}

}  // namespace maskring::cuda::detail::sm90
