// SPDX-License-Identifier: Apache-2.0
// The block map: which tiles of the score matrix a mask leaves empty, full, or in part.
#pragma once

#include <maskring/core/problem.hpp>

#include <cstdint>
#include <memory>
#include <vector>

namespace maskring {

/// Consecutive tiles of a row (or column) of the block map with one verdict, full or partial.
struct tile_run {
  std::int32_t first = 0;
  std::uint32_t packed = 0; ///< count · 2 + (partial ? 1 : 0)

  constexpr tile_run() = default;
  constexpr tile_run(int first_tile, int tiles, bool is_partial)
      : first{first_tile}, packed{static_cast<std::uint32_t>(tiles) * 2 + (is_partial ? 1 : 0)} {}
  constexpr int count() const { return static_cast<int>(packed >> 1); }
  constexpr bool partial() const { return (packed & 1) != 0; }
  constexpr int end() const { return first + count(); }
  friend constexpr bool operator==(tile_run, tile_run) = default;
};

/// Rows of runs: row i is runs[offsets[i]] to runs[offsets[i + 1]], in ascending order, empty tiles
/// left out. Trivially copyable; the memory is somebody else's, host or device.
struct tile_rows {
  const std::int32_t* offsets = nullptr;
  const tile_run* runs = nullptr;

  constexpr const tile_run* begin(index_t row) const { return runs + offsets[row]; }
  constexpr const tile_run* end(index_t row) const { return runs + offsets[row + 1]; }
};

/// The sizes that a block map is made for. One batch entry or head stands for all of them where the
/// mask does not depend on it.
struct map_shape {
  index_t batch = 1;
  index_t heads = 1;
  index_t q_len = 0;
  index_t kv_len = 0;
  friend constexpr bool operator==(map_shape, map_shape) = default;
};

/// A block map as kernels see it: by value, pointing to memory of the host or of a device.
struct block_map_view {
  tile_rows rows;    ///< per tile of queries, the runs of key tiles
  tile_rows columns; ///< per tile of keys, the runs of query tiles
  /// Per layer, its tiles of queries, those with the most tiles of keys first; null: not known.
  const std::int32_t* longest = nullptr;
  index_t q_len = 0;
  index_t kv_len = 0;
  int batch = 1; ///< 1: shared by all batch entries
  int heads = 1; ///< 1: shared by all heads
  tile_shape tile{};

  constexpr index_t q_lead() const { return tile.lead(q_len); }
  constexpr int q_tiles() const { return static_cast<int>((q_len + tile.q - 1) / tile.q); }
  constexpr int kv_tiles() const { return static_cast<int>((kv_len + tile.kv - 1) / tile.kv); }

  /// Which of the batch·heads maps belongs to a batch entry and head.
  constexpr index_t layer(int b, int h) const {
    return index_t{batch == 1 ? 0 : b} * heads + (heads == 1 ? 0 : h);
  }
  constexpr index_t row(int b, int h, int q_tile) const { return layer(b, h) * q_tiles() + q_tile; }
  constexpr index_t column(int b, int h, int kv_tile) const {
    return layer(b, h) * kv_tiles() + kv_tile;
  }
};

/// A block map in host memory; make_block_map builds it. Immutable; copies share their memory.
class block_map {
public:
  struct csr {
    std::vector<std::int32_t> offsets{0};
    std::vector<tile_run> runs;
  };

  /// From rows and columns of runs that were built elsewhere.
  block_map(const block_map_view& sizes, csr rows, csr columns)
      : storage_{std::make_shared<storage>(storage{std::move(rows), std::move(columns)})},
        view_{sizes} {
    view_.rows = {storage_->rows.offsets.data(), storage_->rows.runs.data()};
    view_.columns = {storage_->columns.offsets.data(), storage_->columns.runs.data()};
  }

  /// Valid while this map or a copy of it lives.
  const block_map_view& view() const { return view_; }
  operator const block_map_view&() const { return view_; }

  std::size_t bytes() const { return bytes_of(storage_->rows) + bytes_of(storage_->columns); }
  const csr& rows() const { return storage_->rows; }
  const csr& columns() const { return storage_->columns; }

  /// The number of full (or partial) tiles in all layers.
  index_t count(verdict kind) const {
    index_t visited[2] = {};
    for (const tile_run& run : storage_->rows.runs) visited[run.partial()] += run.count();
    if (kind == verdict::none) return tiles() - visited[0] - visited[1];
    return visited[kind == verdict::some];
  }

  index_t tiles() const {
    return index_t{view_.batch} * view_.heads * view_.q_tiles() * view_.kv_tiles();
  }

  /// The share of tiles that are never visited, in percent.
  double sparsity() const {
    return tiles() == 0
               ? 0.0
               : 100.0 * static_cast<double>(count(verdict::none)) / static_cast<double>(tiles());
  }

private:
  struct storage {
    csr rows, columns;
  };
  static std::size_t bytes_of(const csr& c) {
    return c.offsets.size() * sizeof(std::int32_t) + c.runs.size() * sizeof(tile_run);
  }

  std::shared_ptr<const storage> storage_;
  block_map_view view_;
};

} // namespace maskring
