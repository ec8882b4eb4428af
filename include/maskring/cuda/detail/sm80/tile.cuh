// SPDX-License-Identifier: Apache-2.0
// Tiles of 16-bit elements in shared memory: how they lie, how they are filled, how warps read
// them.
#pragma once

#include <maskring/core/view.hpp>
#include <maskring/cuda/detail/ptx/cp_async.cuh>
#include <maskring/cuda/detail/ptx/ldmatrix.cuh>

#include <cstdint>

namespace maskring::cuda::detail::sm80 {

/// `Rows` × `Columns` 16-bit elements, row by row in chunks of 16 bytes. A row's chunks are
/// permuted by exclusive or with its number, so that 8 rows of one column of chunks lie in
/// different banks.
template <int Rows, int Columns>
struct tile_layout {
  static_assert(Columns % 32 == 0);
  static constexpr int rows = Rows;
  static constexpr int columns = Columns;
  static constexpr int chunks = Columns / 8;
  static constexpr int row_bytes = 2 * Columns;
  static constexpr int bytes = Rows * row_bytes;
  // Rows of an odd number of 64-byte halves: two of them share a line of all banks.
  static constexpr int spread = Columns % 64 == 0 ? 8 : 4;

  static __device__ std::uint32_t key(int row) {
    return (spread == 8 ? row & 7 : (row >> 1) & 3) * 16;
  }
  static __device__ std::uint32_t offset(int row, int chunk) {
    return row * row_bytes + ((chunk * 16) ^ key(row));
  }
};

/// The rows of a tensor [.., .., sequence, dim] that belong to one batch entry and head.
struct row_source {
  const std::uint16_t* data;
  index_t stride; ///< elements from row to row
  int length, dim;
  bool vectors; ///< rows begin at multiples of 16 bytes and hold whole chunks

  template <class T>
  static __device__ row_source of(const view<const T, 4>& tensor, int b, int h, bool vectors) {
    return {reinterpret_cast<const std::uint16_t*>(tensor.data + tensor.offset(b, h, 0, 0)),
            tensor.strides[2], static_cast<int>(tensor.extents[2]),
            static_cast<int>(tensor.extents[3]), vectors};
  }
};

/// Starts copying rows [first, first + Rows) of the source to shared memory with `Threads` threads,
/// all of the block's or a part of them; rows and columns that the source does not have become 0.
/// Completes with this thread's copies and the next barrier.
template <class Layout, int Threads>
__device__ inline void fill_tile(std::uint32_t shared, const row_source& source, int first) {
  constexpr int chunks = Layout::chunks;
  static_assert(Layout::rows * chunks % Threads == 0);
  const int thread = static_cast<int>(threadIdx.x) % Threads;
  if constexpr (Threads % chunks == 0 && (Threads / chunks) % 8 == 0) {
    // Each thread keeps its column of chunks, and its place in the permutation.
    constexpr int step = Threads / chunks;
    const int chunk = thread % chunks;
    const int row = thread / chunks;
    const std::uint32_t to = shared + Layout::offset(row, chunk);
    if (source.vectors) {
      const std::uint16_t* from = source.data + (first + row) * source.stride + chunk * 8;
      // How many of this thread's rows exist, counted from its first; nothing is read past them.
      const int rows = chunk * 8 < source.dim ? source.length - first - row : 0;
#pragma unroll
      for (int i = 0; i < Layout::rows / step; ++i) {
        ptx::copy_async(to + i * step * Layout::row_bytes, from, i * step < rows);
        from += step * source.stride;
      }
      return;
    }
  } else if (source.vectors) {
#pragma unroll
    for (int i = 0; i < Layout::rows * chunks / Threads; ++i) {
      const int row = (thread + i * Threads) / chunks;
      const int chunk = (thread + i * Threads) % chunks;
      const bool valid = chunk * 8 < source.dim && first + row < source.length;
      const std::uint16_t* from = source.data + (first + row) * source.stride + chunk * 8;
      ptx::copy_async(shared + Layout::offset(row, chunk), valid ? from : source.data, valid);
    }
    return;
  }
#pragma unroll 1
  for (int i = thread; i < Layout::rows * chunks; i += Threads) {
    const int row = i / chunks;
    const int chunk = i % chunks;
    std::uint32_t word[4] = {};
    if (first + row < source.length) {
      const std::uint16_t* from = source.data + (first + row) * source.stride;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int column = chunk * 8 + e;
        if (column < source.dim) word[e / 2] |= std::uint32_t{from[column]} << (16 * (e % 2));
      }
    }
    asm volatile(
        "st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared + Layout::offset(row, chunk)),
        "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
        : "memory");
  }
}

/// From an address in the first of 16 × 16 blocks to the same place of the one that begins at row
/// 16·i and chunk 2·c.
template <class Layout>
__device__ inline std::uint32_t block_address(std::uint32_t at, int i, int c) {
  constexpr std::uint32_t permuted = Layout::spread * 16 - 1;
  const std::uint32_t column = 32 * c;
  return (at ^ (column & permuted)) + (column & ~permuted) + i * 16 * Layout::row_bytes;
}

/// Reads 16 × 16 blocks of a tile as operands of ptx::mma.
///
/// With `Pairs` false lane l names row l % 16 and chunk l / 16 of the block: the order of an A
/// operand stored as it is, and of two B operands stored inner index first (transposed on the way).
/// With `Pairs` true the two middle matrices are exchanged: the order of two B operands stored
/// column first, and of an A operand stored transposed.
template <class Layout, bool Pairs>
class block_reader {
public:
  static constexpr int columns = Layout::columns;

  /// Blocks are counted from row `row` (a multiple of 8) and chunk `chunk`, whose number must have
  /// no bit in common with those of the chunks read relative to it.
  __device__ explicit block_reader(std::uint32_t shared, int row = 0, int chunk = 0) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int lane_row = Pairs ? lane % 8 + lane / 16 * 8 : lane % 16;
    const int lane_chunk = Pairs ? lane / 8 % 2 : lane / 16;
    at_ = shared + Layout::offset(row + lane_row, chunk + lane_chunk);
  }

  /// The block that begins at row 16·i and chunk 2·c.
  __device__ void load(std::uint32_t (&word)[4], int i, int c) const {
    ptx::load_matrices(word, address(i, c));
  }
  __device__ void load_transposed(std::uint32_t (&word)[4], int i, int c) const {
    ptx::load_matrices_transposed(word, address(i, c));
  }

  /// Has addresses computed again from here on: kept from one iteration of a loop to the next they
  /// would take more registers than there are.
  __device__ void forget() { asm volatile("" : "+r"(at_)); }

private:
  __device__ std::uint32_t address(int i, int c) const { return block_address<Layout>(at_, i, c); }

  std::uint32_t at_;
};

/// Writes 16 × 16 blocks that lie in registers as products leave them, packed in pairs: what a
/// block_reader with `Pairs` false gives back.
template <class Layout>
class block_writer {
public:
  /// Blocks are counted as by block_reader.
  __device__ block_writer(std::uint32_t shared, int row, int chunk) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    at_ = shared + Layout::offset(row + lane / 4, chunk) + lane % 4 * 4;
  }

  __device__ void store(const std::uint32_t (&word)[4], int i, int c) const {
    const std::uint32_t first = block_address<Layout>(at_, i, c);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const std::uint32_t to = (first ^ w / 2 * 16) + w % 2 * 8 * Layout::row_bytes;
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(word[w]) : "memory");
    }
  }

private:
  std::uint32_t at_;
};

} // namespace maskring::cuda::detail::sm80
