// SPDX-License-Identifier: Apache-2.0
// Tensor maps, the copy engine's description of a tensor, and copies of their boxes (sm_90).
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/core/view.hpp>
#include <maskring/cuda/detail/ptx/element.cuh>

#include <cuda.h>
#include <cuda/ptx>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace maskring::cuda::detail::ptx {

/// The driver's encoder, through the runtime: programs need not link the driver library.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto encoder = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                                12000, cudaEnableDefault, &found);
    if (status != cudaSuccess || found != cudaDriverEntryPointSuccess) {
      throw std::runtime_error{
          std::string{"maskring: the CUDA driver offers no cuTensorMapEncodeTiled: "} +
          cudaGetErrorString(status)};
    }
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  return encoder;
}

/// Whether the copy engine can read this tensor: a 16-byte aligned base and row strides.
template <class T>
bool fits_tensor_map(const view<const T, 4>& tensor) {
  bool fits = reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0 && tensor.stride(3) == 1;
  for (int d = 0; d < 3; ++d) {
    const index_t bytes = tensor.stride(d) * static_cast<index_t>(sizeof(T));
    fits = fits && (tensor.extent(d) == 1 || (bytes % 16 == 0 && bytes > 0)) &&
           bytes < (index_t{1} << 40);
  }
  return fits;
}

/// A map of [batch, head, sequence, dim] whose boxes are `rows` × `columns` of one head.
///
/// A box reaches shared memory as `rows` consecutive rows of `columns` elements, 128 or 64 bytes,
/// swizzled over that width; what lies outside the tensor arrives as 0.
template <class T>
CUtensorMap make_tensor_map(const view<const T, 4>& tensor, int rows, int columns) {
  CUtensorMap map;
  cuuint64_t extents[4];
  cuuint64_t strides[3];
  for (int d = 0; d < 4; ++d) extents[d] = static_cast<cuuint64_t>(tensor.extent(3 - d));
  for (int d = 0; d < 3; ++d) {
    // The stride of an extent of 1 may be anything, for the caller; the driver wants a valid one.
    strides[d] =
        tensor.extent(2 - d) == 1 ? 16 : static_cast<cuuint64_t>(tensor.stride(2 - d)) * sizeof(T);
  }
  const cuuint32_t box[4] = {static_cast<cuuint32_t>(columns), static_cast<cuuint32_t>(rows), 1, 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const auto type = std::is_same_v<T, bfloat16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const auto pattern =
      columns * sizeof(T) == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  const CUresult status =
      tensor_map_encoder()(&map, type, 4, const_cast<T*>(tensor.data), extents, strides, box, steps,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, pattern,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw std::runtime_error{"maskring: cuTensorMapEncodeTiled failed with CUresult " +
                             std::to_string(static_cast<int>(status))};
  }
  return map;
}

/// Copies the box at the given corner; the barrier counts its bytes.
__device__ inline void load_box(void* destination, const CUtensorMap& map, std::uint64_t& barrier,
                                int column, int row, int head, int batch) {
  const std::int32_t corner[4] = {column, row, head, batch};
  ::cuda::ptx::cp_async_bulk_tensor(::cuda::ptx::space_cluster, ::cuda::ptx::space_global,
                                    destination, &map, corner, &barrier);
}

/// Copies the box at the given corner out; what lies outside the tensor is left out. Ends with the
/// thread's bulk group.
__device__ inline void store_box(const CUtensorMap& map, const void* source, int column, int row,
                                 int head, int batch) {
  const std::int32_t corner[4] = {column, row, head, batch};
  ::cuda::ptx::cp_async_bulk_tensor(::cuda::ptx::space_global, ::cuda::ptx::space_shared, &map,
                                    corner, source);
}

/// Fetches the description itself ahead of its first use.
__device__ inline void prefetch(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

} // namespace maskring::cuda::detail::ptx
