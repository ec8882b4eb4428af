// SPDX-License-Identifier: Apache-2.0
// Copies, sums and zeros of strided tensors on the device.
#pragma once

#include <maskring/core/view.hpp>
#include <maskring/cuda/error.cuh>

#include <cuda_runtime_api.h>

#include <cstdint>

namespace maskring::cp::detail {

/// `Width` neighbours along dim, moved as one where they lie aligned.
template <class T, int Width>
struct alignas(sizeof(T) * Width) pack {
  T values[Width];
};

struct assign {
  template <class A, class B>
  __device__ void operator()(const A& from, B& to) const {
    to = static_cast<B>(from);
  }
};
struct accumulate {
  __device__ void operator()(float from, float& to) const { to += from; }
};

/// Calls op(from, to) for all elements; blockIdx.y counts batch entries and heads.
template <int Width, class A, class B, class Op>
__global__ void move_kernel(const view<const A, 4> from, const view<B, 4> to, const Op op) {
  const index_t per_row = to.extents[3] / Width;
  const index_t count = to.extents[2] * per_row;
  const index_t stride = index_t{gridDim.x} * blockDim.x;
  for (index_t layer = blockIdx.y; layer < to.extents[0] * to.extents[1]; layer += gridDim.y) {
    const index_t b = layer / to.extents[1], h = layer % to.extents[1];
    const A* source = from.data + b * from.strides[0] + h * from.strides[1];
    B* target = to.data + b * to.strides[0] + h * to.strides[1];
    for (index_t i = index_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
      // 64-bit divisions are slow and rarely needed.
      const index_t row = count <= 0xffffffff
                              ? static_cast<std::uint32_t>(i) / static_cast<std::uint32_t>(per_row)
                              : i / per_row;
      const index_t d = (i - row * per_row) * Width;
      const auto in = *reinterpret_cast<const pack<A, Width>*>(source + row * from.strides[2] + d);
      auto* place = reinterpret_cast<pack<B, Width>*>(target + row * to.strides[2] + d);
      auto out = std::is_same_v<Op, assign> ? pack<B, Width>{} : *place;
      for (int w = 0; w < Width; ++w) op(in.values[w], out.values[w]);
      *place = out;
    }
  }
}

template <class T>
bool lies_aligned(const view<T, 4>& tensor, int width) {
  const auto bytes = static_cast<index_t>(sizeof(T)) * width;
  bool fits =
      reinterpret_cast<std::uintptr_t>(tensor.data) % static_cast<std::uintptr_t>(bytes) == 0 &&
      tensor.extent(3) % width == 0;
  for (int d = 0; d < 3; ++d) {
    fits = fits && (tensor.extent(d) <= 1 ||
                    tensor.stride(d) * static_cast<index_t>(sizeof(T)) % bytes == 0);
  }
  return fits;
}

/// Queues op(from, to) over two views of one shape.
template <class A, class B, class Op>
void move(const view<const A, 4>& from, const view<B, 4>& to, Op op, cudaStream_t stream) {
  if (to.size() == 0) return;
  constexpr int widest = 16 / static_cast<int>(sizeof(A) > sizeof(B) ? sizeof(A) : sizeof(B));
  const bool wide = lies_aligned(from, widest) && lies_aligned(to, widest);
  constexpr int threads = 256;
  const index_t per_layer = to.extent(2) * to.extent(3) / (wide ? widest : 1);
  const index_t layers = to.extent(0) * to.extent(1);
  constexpr index_t most_blocks = 2048;
  const dim3 grid{static_cast<unsigned>(clamp((per_layer + threads - 1) / threads, index_t{1},
                                              max(index_t{1}, most_blocks / layers))),
                  static_cast<unsigned>(min(layers, index_t{65535}))};
  if (wide) {
    move_kernel<widest><<<grid, threads, 0, stream>>>(from, to, op);
  } else {
    move_kernel<1><<<grid, threads, 0, stream>>>(from, to, op);
  }
  cuda::detail::require_cuda(cudaGetLastError(), "launch of move_kernel");
}

/// Whether the elements are one block of memory, in whatever order.
template <class T>
bool is_block(const view<T, 4>& tensor) {
  index_t reach = 1;
  for (int d = 0; d < 4; ++d) {
    if (tensor.stride(d) < 0) return false;
    reach += (tensor.extent(d) - 1) * tensor.stride(d);
  }
  return reach == tensor.size();
}

template <class T>
void fill_zero(const view<T, 4>& to, cudaStream_t stream) {
  const auto bytes = [](index_t count) { return static_cast<std::size_t>(count) * sizeof(T); };
  if (to.size() == 0) return;
  if (is_block(to)) {
    cuda::detail::require_cuda(cudaMemsetAsync(to.data, 0, bytes(to.size()), stream),
                               "cudaMemsetAsync");
    return;
  }
  for (index_t b = 0; b < to.extent(0); ++b) {
    for (index_t h = 0; h < to.extent(1); ++h) {
      // A row may be as long as its stride, but not overlap the next.
      cuda::detail::require_cuda(cudaMemset2DAsync(to.data + to.offset(b, h, 0, 0),
                                                   bytes(to.stride(2)), 0, bytes(to.extent(3)),
                                                   static_cast<std::size_t>(to.extent(2)), stream),
                                 "cudaMemset2DAsync");
    }
  }
}

} // namespace maskring::cp::detail
