// SPDX-License-Identifier: Apache-2.0
// The two passes that build a block map on the device: count the runs, then write them.
#pragma once

#include <maskring/cuda/detail/block_map/buffer.cuh>
#include <maskring/cuda/detail/block_map/elements.cuh>
#include <maskring/cuda/detail/block_map/ranges.cuh>
#include <maskring/cuda/detail/block_map/runs.cuh>

#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include <limits>

namespace maskring::cuda::detail {

inline constexpr int builder_threads = 256;

/// What a build says of itself.
struct build_status {
  unsigned long long runs;       ///< of rows and columns together
  unsigned long long difference; ///< of the tiles in the rows and in the columns, as fingerprints
  unsigned depends;              ///< the axes that the mask depends on

  /// Whether a tile is empty in its row and not in its column, or the reverse: the mask decides a
  /// rectangle, but not a smaller one within it.
  constexpr bool contradicts() const { return difference != 0; }
  constexpr bool fits(const line_grid& grid, index_t capacity) const {
    return runs <= static_cast<unsigned long long>(capacity) &&
           grid.covers(static_cast<std::uint8_t>(depends)) && !contradicts();
  }
};

/// Everything but the mask that the kernels of a build work on, in device memory.
struct build_memory {
  build_status* status;
  std::int32_t* before;  ///< [items], runs that begin in the segments before it in its block
  std::int32_t* totals;  ///< [blocks], runs that begin in the segments of each block
  std::int32_t* offsets; ///< [lines + 1]
  tile_run* runs;        ///< [capacity]
  index_t capacity;
};

template <class T>
using builder_scan = cub::BlockScan<T, builder_threads>;
template <class T>
using builder_sum = cub::BlockReduce<T, builder_threads>;

template <mask_mod Mask>
__global__ void find_depends(range_source<Mask> source, map_shape shape, build_status* status) {
  status->depends = source.depends(shape);
}

/// A status that knows what the mask depends on, and counts from zero.
template <mask_mod Mask>
void start_status(cudaStream_t stream, const Mask& mask, const map_shape& shape,
                  build_status* status) {
  require_cuda(cudaMemsetAsync(status, 0, sizeof(build_status), stream), "cudaMemsetAsync");
  find_depends<<<1, 1, 0, stream>>>(range_source<Mask>{mask}, shape, status);
}

template <class Source>
__global__ void __launch_bounds__(builder_threads)
    count_runs(Source source, line_grid grid, build_memory memory) {
  const index_t item = index_t{blockIdx.x} * builder_threads + threadIdx.x;
  std::int32_t starts = 0;
  unsigned long long tiles = 0;
  if (item < grid.items()) {
    const line_segment s = grid.at(item);
    run_counter counter{s, s.opens ? 0 : source.kind_before(grid, s)};
    source.walk(grid, s, counter);
    starts = counter.starts();
    tiles = counter.fingerprint();
  }
  __shared__ typename builder_scan<std::int32_t>::TempStorage scan;
  __shared__ typename builder_sum<unsigned long long>::TempStorage sum;
  std::int32_t before = 0, total = 0;
  builder_scan<std::int32_t>{scan}.ExclusiveSum(starts, before, total);
  tiles = builder_sum<unsigned long long>{sum}.Sum(tiles);
  if (item < grid.items()) memory.before[item] = before;
  if (threadIdx.x == 0) {
    memory.totals[blockIdx.x] = total;
    atomicAdd(&memory.status->runs, static_cast<unsigned long long>(total));
    atomicAdd(&memory.status->difference, tiles);
  }
}

/// Writes the map; or, where it has more runs than there is room, fewer layers than the mask needs,
/// or rows and columns that differ (kernels wait for one another by both), one that is right for
/// every mask: a single partial run a line.
template <class Source>
__global__ void __launch_bounds__(builder_threads)
    write_runs(Source source, line_grid grid, build_memory memory) {
  const build_status status = *memory.status;
  const bool fits = status.fits(grid, memory.capacity);
  __shared__ typename builder_sum<std::int32_t>::TempStorage sum;
  __shared__ std::int32_t below;
  std::int32_t share = 0;
  for (unsigned i = threadIdx.x; i < blockIdx.x; i += builder_threads) share += memory.totals[i];
  share = builder_sum<std::int32_t>{sum}.Sum(share);
  if (threadIdx.x == 0) below = share;
  __syncthreads();

  const index_t item = index_t{blockIdx.x} * builder_threads + threadIdx.x;
  if (item >= grid.items()) return;
  const line_segment s = grid.at(item);
  const std::int32_t next = below + memory.before[item];
  if (s.opens) {
    memory.offsets[s.number] = fits ? next : static_cast<std::int32_t>(s.number);
    if (!fits) {
      memory.runs[s.number] = {0, s.column ? grid.sizes.q_tiles() : grid.sizes.kv_tiles(), true};
    }
  }
  if (item == 0) {
    memory.offsets[grid.lines()] = static_cast<std::int32_t>(fits ? status.runs : grid.lines());
  }
  if (!fits) return;
  run_writer writer{memory.runs + next, s, s.opens ? 0 : source.kind_before(grid, s)};
  source.walk(grid, s, writer);
  writer.finish();
}

/// A block map under construction: how its work is cut up and where it happens.
template <mask_mod Mask>
class map_builder {
public:
  static constexpr bool by_elements = needs_elements<Mask>;

  explicit map_builder(const line_grid& grid)
      : grid_{by_elements ? grid.with_segment(32) : grid.with_items(1 << 16, 32)} {
    const index_t most = std::numeric_limits<int>::max();
    maskring::detail::require(blocks() <= most && words() <= most && grid_.lines() < most,
                              "make_block_map: the map has ", grid_.lines(),
                              " rows and columns of tiles, expected fewer");
    status_ = placed_.add<build_status>(1);
    before_ = placed_.add<std::int32_t>(grid_.items());
    totals_ = placed_.add<std::int32_t>(blocks());
    bits_ = placed_.add<tile_bits>(words());
  }

  const line_grid& grid() const { return grid_; }
  std::size_t scratch_bytes() const { return placed_.bytes(); }

  build_memory memory(const device_buffer& scratch, std::int32_t* offsets, tile_run* runs,
                      index_t capacity) const {
    return {scratch.at<build_status>(status_),
            scratch.at<std::int32_t>(before_),
            scratch.at<std::int32_t>(totals_),
            offsets,
            runs,
            capacity};
  }

  /// First pass. Afterwards the status holds what the second needs.
  void count(cudaStream_t stream, const Mask& mask, const device_buffer& scratch,
             const build_memory& memory) const {
    start_status(stream, mask, grid_.shape, memory.status);
    if constexpr (by_elements) {
      find_tile_bits<<<static_cast<unsigned>(words()), 256, 0, stream>>>(
          mask, grid_, scratch.at<tile_bits>(bits_));
    }
    launch<true>(stream, mask, scratch, memory);
  }

  /// Second pass.
  void write(cudaStream_t stream, const Mask& mask, const device_buffer& scratch,
             const build_memory& memory) const {
    if (grid_.split()) { // the halves of a run add up from zero
      require_cuda(cudaMemsetAsync(memory.runs, 0,
                                   static_cast<std::size_t>(memory.capacity) * sizeof(tile_run),
                                   stream),
                   "cudaMemsetAsync");
    }
    launch<false>(stream, mask, scratch, memory);
  }

private:
  template <bool Counting>
  void launch(cudaStream_t stream, const Mask& mask, const device_buffer& scratch,
              const build_memory& memory) const {
    const auto run = [&](const auto& source) {
      const auto grid = static_cast<unsigned>(blocks());
      if constexpr (Counting) {
        count_runs<<<grid, builder_threads, 0, stream>>>(source, grid_, memory);
      } else {
        write_runs<<<grid, builder_threads, 0, stream>>>(source, grid_, memory);
      }
    };
    if constexpr (by_elements) {
      run(bit_source{scratch.at<tile_bits>(bits_)});
    } else {
      run(range_source<Mask>{mask});
    }
    require_cuda(cudaGetLastError(), "launch of the block map builder");
  }

  index_t blocks() const { return (grid_.items() + builder_threads - 1) / builder_threads; }
  index_t words() const { return by_elements ? grid_.rows() * grid_.row_segments() : 0; }

  line_grid grid_;
  placement placed_;
  std::size_t status_ = 0, before_ = 0, totals_ = 0, bits_ = 0;
};

} // namespace maskring::cuda::detail
