// SPDX-License-Identifier: Apache-2.0
// Block maps in device memory, built on the device.
#pragma once

#include <maskring/block/map.hpp>
#include <maskring/cuda/detail/block_map/build.cuh>
#include <maskring/cuda/detail/block_map/longest.cuh>

#include <stdexcept>

namespace maskring::cuda {

/// What a caller knows of a block map before it is built, so that building needs no word from the
/// device: at most so many runs, and which axes the mask depends on.
struct run_bound {
  index_t runs = 0;       ///< of rows and columns together
  bool per_batch = false; ///< the mask depends on the batch entry
  bool per_head = false;  ///< the mask depends on the head
};

class block_map;

template <class Executor, mask_mod Mask>
block_map make_block_map(const Executor& exec, const Mask& mask, const map_shape& shape,
                         tile_shape tile = {});
template <class Executor, mask_mod Mask>
block_map make_block_map(const Executor& exec, const Mask& mask, const map_shape& shape,
                         tile_shape tile, run_bound bound);
template <class Executor>
block_map upload(const Executor& exec, const maskring::block_map& map);

/// A block map that owns device memory, freed in the order of the stream it was made on.
///
/// Kernels take view(). Rows and columns share one array of runs: the columns' offsets start behind
/// the rows', not from zero.
class block_map {
public:
  const block_map_view& view() const { return view_; }
  operator const block_map_view&() const { return view_; }

  /// Device memory held, scratch memory for rebuild() included.
  std::size_t bytes() const { return result_.bytes() + scratch_.bytes(); }

  /// Builds the map of another mask, or of the same whose tables changed, in the same memory.
  ///
  /// For maps made with a run_bound only. Allocates nothing, waits for nothing, and can be captured
  /// in a CUDA graph. Where the bound or the layers do not suffice the map becomes one partial run
  /// a line: results stay right, the speed is that of a dense mask, and check() reports it.
  /// @throws std::invalid_argument for a map made without a bound, or made for a mask that ranges
  /// decide if this one needs its elements looked at.
  template <class Executor, mask_mod Mask>
  void rebuild(const Executor& exec, const Mask& mask) {
    if (grid_.empty()) return;
    maskring::detail::require(scratch_.bytes() > 0,
                              "block_map: rebuild of a map made without a run_bound");
    const detail::map_builder<Mask> builder{grid_};
    maskring::detail::require(builder.scratch_bytes() <= scratch_.bytes(),
                              "block_map: rebuild needs ", builder.scratch_bytes(),
                              " bytes of scratch memory, the map has ", scratch_.bytes(),
                              ": make it with a mask of this type");
    const detail::build_memory memory = memory_of(builder);
    builder.count(exec.stream(), mask, scratch_, memory);
    builder.write(exec.stream(), mask, scratch_, memory);
    find_longest(exec.stream());
  }

  /// Waits for the stream and reports whether the last rebuild() made the map of its mask.
  /// @throws std::length_error if it needed more runs than the bound, std::invalid_argument if the
  /// mask depends on an axis that the bound says it does not depend on, or contradicts itself.
  template <class Executor>
  void check(const Executor& exec) const {
    if (scratch_.bytes() == 0) return;
    const detail::build_status status = status_of(exec.stream());
    require_consistent(status);
    maskring::detail::require(
        grid_.covers(static_cast<std::uint8_t>(status.depends)),
        "block_map: the mask depends on the batch entry or the head, expected "
        "a run_bound that says so (per_batch, per_head)");
    if (status.runs > static_cast<unsigned long long>(capacity_)) {
      throw std::length_error{"maskring: block_map: the mask needs " + std::to_string(status.runs) +
                              " runs, the run_bound allows " + std::to_string(capacity_)};
    }
  }

  /// From now on the stream that it was made on may go before the map.
  void detach_from_stream() {
    result_.detach();
    scratch_.detach();
  }

  /// A copy in host memory. Waits for the stream.
  template <class Executor>
  maskring::block_map download(const Executor& exec) const {
    const auto rows = static_cast<std::size_t>(grid_.rows());
    std::vector<std::int32_t> offsets(static_cast<std::size_t>(grid_.lines()) + 1);
    copy(offsets.data(), view_.rows.offsets, offsets.size(), exec.stream());
    std::vector<tile_run> runs(static_cast<std::size_t>(offsets.back()));
    copy(runs.data(), view_.rows.runs, runs.size(), exec.stream());
    const auto middle = offsets.begin() + static_cast<std::ptrdiff_t>(rows);
    maskring::block_map::csr by_row{{offsets.begin(), middle + 1}, {}};
    maskring::block_map::csr by_column{{middle, offsets.end()}, {}};
    by_row.runs.assign(runs.begin(), runs.begin() + *middle);
    by_column.runs.assign(runs.begin() + *middle, runs.end());
    for (std::int32_t& offset : by_column.offsets) offset -= *middle;
    return {grid_.sizes, std::move(by_row), std::move(by_column)};
  }

  template <class Executor, mask_mod Mask>
  friend block_map make_block_map(const Executor& exec, const Mask& mask, const map_shape& shape,
                                  tile_shape tile);
  template <class Executor, mask_mod Mask>
  friend block_map make_block_map(const Executor& exec, const Mask& mask, const map_shape& shape,
                                  tile_shape tile, run_bound bound);
  template <class Executor>
  friend block_map upload(const Executor& exec, const maskring::block_map& map);

private:
  // Memory for `runs` runs, and for a partial run a line if that is more.
  block_map(cudaStream_t stream, const detail::line_grid& grid, index_t runs) : grid_{grid} {
    view_ = grid.sizes;
    allocate(stream, max(runs, grid.lines()));
  }

  void allocate(cudaStream_t stream, index_t runs) {
    detail::placement placed;
    const std::size_t offsets_at = placed.add<std::int32_t>(grid_.lines() + 1);
    const std::size_t longest_at = placed.add<std::int32_t>(grid_.rows());
    work_at_ = placed.add<int>(grid_.rows());
    const std::size_t runs_at = placed.add<tile_run>(runs);
    result_ = detail::device_buffer{stream, placed.bytes()};
    view_.rows = {result_.at<std::int32_t>(offsets_at), result_.at<tile_run>(runs_at)};
    view_.columns = {view_.rows.offsets + grid_.rows(), view_.rows.runs};
    if (!grid_.empty()) view_.longest = result_.at<std::int32_t>(longest_at);
    capacity_ = runs;
    if (grid_.empty()) {
      detail::require_cuda(cudaMemsetAsync(result_.at<void>(0), 0, result_.bytes(), stream),
                           "cudaMemsetAsync");
    }
  }

  void find_longest(cudaStream_t stream) const {
    detail::find_longest(stream, view_, result_.at<int>(work_at_),
                         const_cast<std::int32_t*>(view_.longest));
  }

  template <mask_mod Mask>
  detail::build_memory memory_of(const detail::map_builder<Mask>& builder) const {
    return builder.memory(scratch_, const_cast<std::int32_t*>(view_.rows.offsets),
                          const_cast<tile_run*>(view_.rows.runs), capacity_);
  }

  static void require_consistent(const detail::build_status& status) {
    maskring::detail::require(
        !status.contradicts(),
        "make_block_map: the mask answers `none` for a rectangle but not for a tile within it, "
        "expected answers that hold for every part: give the host's map to cuda::upload instead");
  }

  detail::build_status status_of(cudaStream_t stream) const {
    detail::build_status status;
    copy(&status, scratch_.at<detail::build_status>(0), 1, stream);
    return status;
  }

  template <class T>
  static void copy(T* to, const T* from, std::size_t count, cudaStream_t stream) {
    detail::require_cuda(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDefault, stream),
                         "cudaMemcpyAsync");
    detail::require_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  }

  detail::line_grid grid_;
  detail::device_buffer result_, scratch_;
  std::size_t work_at_ = 0; ///< tiles of each row, for find_longest
  index_t capacity_ = 0;
  block_map_view view_;
};

/// The block map of a mask, built on the device: what maskring::make_block_map builds on the host,
/// run for run, with memory proportional to the runs.
///
/// Every line of tiles is found by a descent on verdicts, several threads to a line where there are
/// few. Masks that need it have their undecided tiles looked at element by element. A mask that
/// reads memory must be readable by the device: give it the views of device tables. Waits for the
/// stream once (twice for more than one batch entry or head) to learn the number of runs.
/// @throws std::invalid_argument for negative sizes, a tile without extent, or a mask that says
/// `none` of a rectangle but not of a tile within it; cuda::error.
template <class Executor, mask_mod Mask>
block_map make_block_map(const Executor& exec, const Mask& mask, const map_shape& shape,
                         tile_shape tile) {
  detail::line_grid grid = detail::whole_grid(shape, tile);
  const cudaStream_t stream = exec.stream();
  if (!grid.empty() && shape.batch * shape.heads > 1) {
    const detail::device_buffer memory{stream, sizeof(detail::build_status)};
    auto* status = memory.at<detail::build_status>(0);
    detail::start_status(stream, mask, shape, status);
    detail::build_status found;
    block_map::copy(&found, status, 1, stream);
    grid = grid.with_layers((found.depends & batch_axis) != 0, (found.depends & head_axis) != 0);
  }
  block_map map{stream, grid, 4 * grid.lines()};
  if (grid.empty()) return map;
  const detail::map_builder<Mask> builder{grid};
  map.scratch_ = detail::device_buffer{stream, builder.scratch_bytes()};
  builder.count(stream, mask, map.scratch_, map.memory_of(builder));
  builder.write(stream, mask, map.scratch_, map.memory_of(builder));
  const detail::build_status status = map.status_of(stream);
  block_map::require_consistent(status);
  const auto runs = status.runs;
  maskring::detail::require(runs <= std::numeric_limits<std::int32_t>::max(),
                            "make_block_map: the map has ", runs, " runs, expected less than 2^31");
  if (static_cast<index_t>(runs) > map.capacity_) {
    map.allocate(stream, static_cast<index_t>(runs));
    builder.write(stream, mask, map.scratch_, map.memory_of(builder));
  }
  map.find_longest(stream);
  map.scratch_ = {};
  return map;
}

/// The same with a bound that the caller knows: nothing waits for the device, and
/// block_map::rebuild and block_map::check work on the result. Memory is proportional to the bound.
template <class Executor, mask_mod Mask>
block_map make_block_map(const Executor& exec, const Mask& mask, const map_shape& shape,
                         tile_shape tile, run_bound bound) {
  const detail::line_grid grid =
      detail::whole_grid(shape, tile).with_layers(bound.per_batch, bound.per_head);
  block_map map{exec.stream(), grid, bound.runs};
  if (grid.empty()) return map;
  const detail::map_builder<Mask> builder{grid};
  map.scratch_ = detail::device_buffer{exec.stream(), builder.scratch_bytes()};
  map.rebuild(exec, mask);
  return map;
}

/// A device copy of a block map that was built on the host.
template <class Executor>
block_map upload(const Executor& exec, const maskring::block_map& map) {
  detail::line_grid grid{{map.view().batch, map.view().heads, map.view().q_len, map.view().kv_len},
                         map.view()};
  std::vector<std::int32_t> offsets = map.rows().offsets;
  std::vector<tile_run> runs = map.rows().runs;
  offsets.pop_back();
  for (const std::int32_t offset : map.columns().offsets) {
    offsets.push_back(offset + static_cast<std::int32_t>(map.rows().runs.size()));
  }
  runs.insert(runs.end(), map.columns().runs.begin(), map.columns().runs.end());
  block_map out{exec.stream(), grid, static_cast<index_t>(runs.size())};
  block_map::copy(const_cast<std::int32_t*>(out.view_.rows.offsets), offsets.data(), offsets.size(),
                  exec.stream());
  block_map::copy(const_cast<tile_run*>(out.view_.rows.runs), runs.data(), runs.size(),
                  exec.stream());
  if (!grid.empty()) out.find_longest(exec.stream());
  return out;
}

} // namespace maskring::cuda
