// SPDX-License-Identifier: Apache-2.0
// From the tiles of a segment to runs that may reach over its seams.
#pragma once

#include <maskring/cuda/detail/block_map/lines.cuh>

namespace maskring::cuda::detail {

/// A fingerprint of a set of tiles that rows and columns of it come to alike: the sum, modulo 2^64,
/// of Δq(i)·Δk(j) over its tiles, where Δ is the difference of a hash at i + 1 and at i. The sum
/// over a run of tiles is then the difference of the hash at its two ends.
class tile_fingerprint {
public:
  constexpr explicit tile_fingerprint(const line_segment& s)
      : line_{difference(s.line, s.line + 1, s.column) *
              (hash(s.batch, 2) + hash(s.head, 3) * 2 + 1)},
        across_keys_{!s.column} {}

  constexpr void add(int first, int end) { sum_ += difference(first, end, across_keys_); }

  /// What rows add to the whole and columns take away from it.
  constexpr unsigned long long value() const {
    return across_keys_ ? line_ * sum_ : 0 - line_ * sum_;
  }

private:
  // The finaliser of MurmurHash3 (A. Appleby).
  static constexpr unsigned long long hash(int i, int salt) {
    auto x = static_cast<unsigned long long>(i) * 4 + static_cast<unsigned long long>(salt) + 1;
    x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdull;
    x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ull;
    return x ^ (x >> 33);
  }
  static constexpr unsigned long long difference(int first, int end, bool keys) {
    return hash(end, keys) - hash(first, keys);
  }

  unsigned long long line_, sum_ = 0;
  bool across_keys_;
};

/// Counts the runs that begin in a segment.
class run_counter {
public:
  /// `kind` is what the tile before the segment holds: 0 nothing, 1 full, 2 partial.
  constexpr run_counter(const line_segment& s, int kind) : end_{s.first}, kind_{kind}, tiles_{s} {}

  constexpr void operator()(int first, int count, bool partial) {
    const int kind = partial ? 2 : 1;
    starts_ += kind != kind_ || first != end_;
    end_ = first + count;
    kind_ = kind;
    tiles_.add(first, end_);
  }
  constexpr int starts() const { return starts_; }
  constexpr unsigned long long fingerprint() const { return tiles_.value(); }

private:
  int end_, kind_;
  int starts_ = 0;
  tile_fingerprint tiles_;
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
