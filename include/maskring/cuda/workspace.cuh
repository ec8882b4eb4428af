// SPDX-License-Identifier: Apache-2.0
// Scratch memory of the device calls, kept by the caller from call to call.
#pragma once

#include <maskring/cuda/detail/block_map/buffer.cuh>

#include <stdexcept>
#include <string>

namespace maskring::cuda {

/// Device memory that calls borrow while their work is queued or running. It grows when a call
/// needs more and never shrinks, so that a repeated call allocates nothing.
///
/// One workspace serves one stream at a time: calls on the same stream may share it, calls that may
/// overlap need one each. Memory is allocated and freed in the order of the stream, so the
/// workspace must go before the stream does.
class workspace {
public:
  workspace() = default;

  /// Holds at least `bytes` from now on. Work queued with the old memory is not disturbed.
  /// @throws cuda::error saying how much was asked for; std::logic_error where the stream is being
  /// captured, because memory of a captured graph lives no longer than one replay.
  void reserve(std::size_t bytes, cudaStream_t stream) {
    if (bytes <= capacity()) return;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    detail::require_cuda(cudaStreamIsCapturing(stream, &capture), "cudaStreamIsCapturing");
    if (capture != cudaStreamCaptureStatusNone) {
      throw std::logic_error{"maskring: the workspace holds " + std::to_string(capacity()) +
                             " bytes and cannot grow to " + std::to_string(bytes) +
                             " while its stream is captured: run the call once before"};
    }
    memory_ = {};
    memory_ = detail::device_buffer{stream, head + bytes};
    // Counters that every kernel leaves at 0 behind it.
    detail::require_cuda(cudaMemsetAsync(memory_.at<void>(0), 0, head, stream), "cudaMemsetAsync");
  }

  std::size_t capacity() const { return memory_.bytes() < head ? 0 : memory_.bytes() - head; }

  /// The memory from `offset` bytes on, below capacity().
  template <class T>
  T* at(std::size_t offset) const {
    return memory_.at<T>(head + offset);
  }

  /// 64 ints that are 0 between kernels.
  int* counters() const { return memory_.at<int>(0); }

private:
  static constexpr std::size_t head = 256;
  detail::device_buffer memory_;
};

} // namespace maskring::cuda
