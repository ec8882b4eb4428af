// SPDX-License-Identifier: Apache-2.0
// Device memory that belongs to one owner and comes and goes in the order of a stream.
#pragma once

#include <maskring/core/range.hpp>
#include <maskring/cuda/error.cuh>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <utility>

namespace maskring::cuda::detail {

/// Bytes of device memory, freed behind the work that its stream held when the owner went.
class device_buffer {
public:
  device_buffer() = default;

  /// @throws cuda::error saying how much was asked for.
  device_buffer(cudaStream_t stream, std::size_t bytes) : stream_{stream}, bytes_{bytes} {
    if (bytes == 0) return;
    const cudaError_t status = cudaMallocAsync(&data_, bytes, stream);
    if (status != cudaSuccess) {
      cudaGetLastError(); // the failure is reported here and must not surface again elsewhere
      throw error{status, ("cudaMallocAsync of " + std::to_string(bytes) + " bytes").c_str()};
    }
  }

  device_buffer(device_buffer&& other) noexcept
      : stream_{other.stream_},
        detached_{other.detached_},
        bytes_{std::exchange(other.bytes_, 0)},
        data_{std::exchange(other.data_, nullptr)} {}
  device_buffer& operator=(device_buffer&& other) noexcept {
    std::swap(stream_, other.stream_);
    std::swap(detached_, other.detached_);
    std::swap(bytes_, other.bytes_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~device_buffer() {
    if (data_ == nullptr) return;
    if (detached_) {
      cudaFree(data_);
    } else {
      cudaFreeAsync(data_, stream_);
    }
  }

  /// From now on the stream may go before the memory, which is then freed behind all work of the
  /// device.
  void detach() { detached_ = true; }

  std::size_t bytes() const { return bytes_; }

  /// The memory from `offset` bytes on.
  template <class T>
  T* at(std::size_t offset) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(data_) + offset);
  }

private:
  cudaStream_t stream_ = nullptr;
  bool detached_ = false;
  std::size_t bytes_ = 0;
  void* data_ = nullptr;
};

/// Places arrays one behind the other in one buffer.
class placement {
public:
  template <class T>
  std::size_t add(index_t count) {
    const std::size_t at = bytes_;
    bytes_ += (static_cast<std::size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return at;
  }
  std::size_t bytes() const { return bytes_; }

private:
  std::size_t bytes_ = 0;
};

} // namespace maskring::cuda::detail
