// SPDX-License-Identifier: Apache-2.0
// Questions to the device, launching, and the checks that both passes share.
#pragma once

#include <maskring/block/map.hpp>
#include <maskring/core/float16.hpp>
#include <maskring/core/problem.hpp>
#include <maskring/cuda/error.cuh>
#include <maskring/mask/concepts.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

namespace maskring::cuda::detail {

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  require_cuda(cudaGetDevice(&device), "cudaGetDevice");
  require_cuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

/// The shared memory that a block may have.
/// @param limit of a policy; 0: none.
inline int block_memory(int limit) {
  const int most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return limit > 0 && limit < most ? limit : most;
}

/// @throws std::invalid_argument
inline void require_block_memory(const char* call, int needed, int memory) {
  maskring::detail::require(needed <= memory, call, ": a block may have ", memory,
                            " bytes of shared memory, the kernel needs ", needed,
                            " (kernels that need less are there in programs compiled for compute "
                            "capability 8.x or 12.x)");
}

/// Whether code may run on devices of little shared memory (99 KB a block): those of compute
/// capability 8.6 and 8.9, which take code for 8.0 too, and 12.x.
#ifdef __CUDA_ARCH_LIST__
inline constexpr bool may_lack_memory = [] {
  for (const int arch : {__CUDA_ARCH_LIST__}) {
    if (arch < 900 || arch >= 1200) return true;
  }
  return false;
}();
#else
inline constexpr bool may_lack_memory = true;
#endif

inline bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  require_cuda(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

/// Queues `kernel(args)`; nothing if there are no blocks.
template <class Arguments>
void launch(void (*kernel)(Arguments), const char* name, index_t blocks, int threads, int bytes,
            cudaStream_t stream, const std::type_identity_t<Arguments>& args) {
  if (blocks == 0) return;
  maskring::detail::require(blocks < (index_t{1} << 31), name, ": the call needs ", blocks,
                            " blocks, expected less than 2^31");
  if (bytes > 48 * 1024) {
    const int most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    maskring::detail::require(bytes <= most, name, ": the kernel needs ", bytes,
                              " bytes of shared memory a block, the device has ", most);
    require_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                 name);
  }
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
           static_cast<std::size_t>(bytes), stream>>>(args);
  require_cuda(cudaGetLastError(), name);
}

/// Whether rows can be read and written in pieces of 16 bytes, the last one whole.
template <class T>
bool has_vectors(const view<T, 4>& tensor) {
  constexpr index_t chunk = 16 / sizeof(T);
  bool fits =
      reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0 && tensor.extents[3] % chunk == 0;
  for (int d = 0; d < 3; ++d) {
    fits = fits && (tensor.extents[d] == 1 || tensor.strides[d] % chunk == 0);
  }
  return fits;
}

/// CUDA's own 16-bit types are the library's, bit for bit.
template <class T>
struct element_of {
  using type = T;
};
template <>
struct element_of<__half> {
  using type = float16;
};
template <>
struct element_of<__nv_bfloat16> {
  using type = bfloat16;
};

template <class T, int Rank>
auto as_element(const view<T, Rank>& tensor) {
  using bare = typename element_of<std::remove_const_t<T>>::type;
  using element = std::conditional_t<std::is_const_v<T>, const bare, bare>;
  return view<element, Rank>{reinterpret_cast<element*>(tensor.data), tensor.extents,
                             tensor.strides};
}

/// @throws std::invalid_argument unless the map was made for this problem.
inline void check_map(const char* call, const block_map_view& map, const problem& p) {
  maskring::detail::require(map.q_len == p.q_len && map.kv_len == p.kv_len, call,
                            ": the block map is for ", map.q_len, " queries and ", map.kv_len,
                            " keys, expected ", p.q_len, " and ", p.kv_len);
  maskring::detail::require(map.batch == 1 || map.batch == p.batch, call, ": the block map has ",
                            map.batch, " batch entries, expected 1 or ", p.batch);
  maskring::detail::require(map.heads == 1 || map.heads == p.q_heads, call, ": the block map has ",
                            map.heads, " heads, expected 1 or ", p.q_heads);
}

/// @throws std::invalid_argument unless the map's tiles are whole numbers of the kernel's.
inline void check_tiles(const char* call, const block_map_view& map, tile_shape kernel) {
  maskring::detail::require(map.tile.q % kernel.q == 0 && map.tile.kv % kernel.kv == 0, call,
                            ": the block map has tiles of ", map.tile.q, " x ", map.tile.kv,
                            ", expected multiples of ", kernel.q, " x ", kernel.kv);
  maskring::detail::require(map.q_lead() == 0, call,
                            ": the block map counts its query tiles from the last query, expected "
                            "from the first");
}

} // namespace maskring::cuda::detail
