// SPDX-License-Identifier: Apache-2.0
// Which rows of a block map have the most tiles: kernels that start with them end evenly.
#pragma once

#include <maskring/block/map.hpp>
#include <maskring/cuda/error.cuh>

#include <cub/warp/warp_reduce.cuh>

#include <cuda_runtime_api.h>

namespace maskring::cuda::detail {

/// work[row] = tiles in the row; a warp a row. `Threads` makes it a template, which headers may
/// hold.
template <int Threads>
__global__ void __launch_bounds__(Threads) count_row_tiles(tile_rows map, index_t rows, int* work) {
  using sum = cub::WarpReduce<int>;
  __shared__ typename sum::TempStorage scratch[Threads / 32];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const index_t row = index_t{blockIdx.x} * (Threads / 32) + warp;
  if (row >= rows) return;
  int tiles = 0;
  for (const tile_run* run = map.begin(row) + lane; run < map.end(row); run += 32) {
    tiles += run->count();
  }
  tiles = sum{scratch[warp]}.Sum(tiles);
  if (lane == 0) work[row] = tiles;
}

/// Sorts a layer's query tiles by their work, most first, and equal ones from the last to the
/// first, which keeps neighbours together: a tile's place is the number of those before it. A
/// thread a tile; all threads of a warp read the same number at a time, so a million tokens take
/// 0.02 ms.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    rank_rows(const int* work, int q_tiles, std::int32_t* longest) {
  const unsigned blocks = (static_cast<unsigned>(q_tiles) + Threads - 1) / Threads; // a layer
  const int tile = static_cast<int>(blockIdx.x % blocks * Threads + threadIdx.x);
  if (tile >= q_tiles) return;
  work += index_t{blockIdx.x / blocks} * q_tiles;
  longest += index_t{blockIdx.x / blocks} * q_tiles;
  const int mine = work[tile];
  int before = 0;
#pragma unroll 16 // the loads wait together
  for (int other = 0; other < q_tiles; ++other) {
    before += work[other] > mine - (other > tile ? 1 : 0);
  }
  longest[before] = tile;
}

/// Writes block_map_view::longest of a map in device memory; `work` has an int for each row.
inline void find_longest(cudaStream_t stream, const block_map_view& map, int* work,
                         std::int32_t* longest) {
  const int layers = map.batch * map.heads;
  const index_t rows = index_t{layers} * map.q_tiles();
  constexpr int threads = 128, warps = threads / 32;
  count_row_tiles<threads>
      <<<static_cast<unsigned>((rows + warps - 1) / warps), threads, 0, stream>>>(map.rows, rows,
                                                                                  work);
  const index_t blocks = index_t{layers} * ((map.q_tiles() + threads - 1) / threads);
  rank_rows<threads>
      <<<static_cast<unsigned>(blocks), threads, 0, stream>>>(work, map.q_tiles(), longest);
  require_cuda(cudaGetLastError(), "launch of rank_rows");
}

} // namespace maskring::cuda::detail
