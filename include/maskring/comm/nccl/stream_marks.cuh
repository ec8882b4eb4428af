// SPDX-License-Identifier: Apache-2.0
// How far streams have come, to be read without a call of CUDA.
#pragma once

#include <maskring/comm/detail/device_objects.cuh>

#include <cuda.h>

#include <atomic>
#include <cstdint>
#include <vector>

namespace maskring::comm::detail {

/// The driver's write of a number to memory, in the order of a stream, through the runtime:
/// programs need not link the driver library.
inline decltype(&cuStreamWriteValue32) stream_writer() {
  static const auto writer = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuStreamWriteValue32", &entry,
                                                                12000, cudaEnableDefault, &found);
    require_cuda(status != cudaSuccess || found == cudaDriverEntryPointSuccess
                     ? status
                     : cudaErrorNotSupported,
                 "cudaGetDriverEntryPointByVersion of cuStreamWriteValue32");
    return reinterpret_cast<decltype(&cuStreamWriteValue32)>(entry);
  }();
  return writer;
}

/// Numbers of host memory that streams set as they come along.
///
/// Asking for an event is a call of CUDA, which may wait for the lock that another thread holds
/// while it waits for room in a stream that is stuck; who is to end such a state must not ask.
class stream_marks {
public:
  using mark = std::uint32_t*;

  explicit stream_marks(int count) {
    void* data = nullptr;
    require_cuda(cudaHostAlloc(&data, static_cast<std::size_t>(count) * sizeof(std::uint32_t),
                               cudaHostAllocPortable),
                 "cudaHostAlloc");
    memory_ = owned<void*, &cudaFreeHost>{data};
    for (int i = 0; i < count; ++i) free_.push_back(static_cast<mark>(data) + i);
  }

  /// A mark at 0, or null if all are in use.
  mark take() {
    if (free_.empty()) return nullptr;
    const mark out = free_.back();
    free_.pop_back();
    *out = 0;
    return out;
  }
  void give_back(mark m) { free_.push_back(m); }

  /// Lets the stream set the mark once it has come to this point.
  static void set(cudaStream_t stream, mark m, std::uint32_t value) {
    const CUresult status = stream_writer()(stream, reinterpret_cast<CUdeviceptr>(m), value,
                                            CU_STREAM_WRITE_VALUE_DEFAULT);
    // The runtime's errors have the driver's numbers.
    require_cuda(static_cast<cudaError_t>(status), "cuStreamWriteValue32");
  }
  static std::uint32_t read(mark m) { return std::atomic_ref{*m}.load(std::memory_order_acquire); }

private:
  owned<void*, &cudaFreeHost> memory_;
  std::vector<mark> free_;
};

} // namespace maskring::comm::detail
