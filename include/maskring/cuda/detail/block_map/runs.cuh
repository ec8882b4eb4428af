// SPDX-License-Identifier: Apache-2.0
// From the tiles of a segment to runs that may reach over its seams.
#pragma once

#include <maskring/cuda/detail/block_map/lines.cuh>

namespace maskring::cuda::detail {

/// Counts the runs that begin in a segment.
class run_counter {
public:
  /// `kind` is what the tile before the segment holds: 0 nothing, 1 full, 2 partial.
  constexpr run_counter(int first, int kind) : end_{first}, kind_{kind} {}

  constexpr void operator()(int first, int count, bool partial) {
    const int kind = partial ? 2 : 1;
    starts_ += kind != kind_ || first != end_;
    end_ = first + count;
    kind_ = kind;
  }
  constexpr int starts() const { return starts_; }

private:
  int end_, kind_;
  int starts_ = 0;
};

/// Writes the runs of a segment. Of a run that begins in one segment and ends in another each side
/// adds its half to the packed count, 2·(end − first) + partial, which was zero before.
class run_writer {
public:
  /// `next` is where the first run that begins in this segment goes.
  __device__ run_writer(tile_run* next, const line_segment& segment, int kind)
      : next_{next}, segment_{segment}, end_{segment.first}, kind_{kind} {}

  __device__ void operator()(int first, int count, bool partial) {
    const int kind = partial ? 2 : 1;
    if (kind != kind_ || first != end_) {
      close();
      start_ = first;
      kind_ = kind;
      ++next_;
    }
    end_ = first + count;
  }

  /// After the last tile of the segment.
  __device__ void finish() {
    if (end_ != segment_.last || segment_.ends) {
      close();
    } else if (start_ >= 0) {
      next_[-1].first = start_;
      atomicAdd(&next_[-1].packed, 0u - 2u * static_cast<std::uint32_t>(start_));
    }
  }

private:
  __device__ void close() {
    if (kind_ == 0) return;
    if (start_ >= 0) {
      next_[-1] = {start_, end_ - start_, kind_ == 2};
    } else {
      atomicAdd(&next_[-1].packed, 2u * static_cast<std::uint32_t>(end_) + (kind_ == 2 ? 1u : 0u));
    }
  }

  tile_run* next_;
  line_segment segment_;
  int start_ = -1; // of the open run; -1: it began in an earlier segment
  int end_, kind_;
};

} // namespace maskring::cuda::detail
