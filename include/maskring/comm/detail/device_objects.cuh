// SPDX-License-Identifier: Apache-2.0
// Streams, events and memory of a device, with owners.
#pragma once

#include <maskring/cuda/error.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <utility>

namespace maskring::comm::detail {

using cuda::detail::require_cuda;

inline int current_device() {
  int device = 0;
  require_cuda(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

/// Makes a device the current one until it goes.
class device_scope {
public:
  explicit device_scope(int device) : before_{current_device()} {
    require_cuda(cudaSetDevice(device), "cudaSetDevice");
  }
  device_scope(const device_scope&) = delete;
  ~device_scope() { cudaSetDevice(before_); }

private:
  int before_;
};

/// Owns what `destroy` ends.
template <class T, auto destroy>
class owned {
public:
  owned() = default;
  explicit owned(T value) : value_{value} {}
  owned(owned&& other) noexcept : value_{std::exchange(other.value_, T{})} {}
  owned& operator=(owned&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~owned() {
    if (value_) destroy(value_);
  }
  T get() const { return value_; }
  explicit operator bool() const { return value_ != T{}; }

private:
  T value_{};
};

using event = owned<cudaEvent_t, &cudaEventDestroy>;
using stream = owned<cudaStream_t, &cudaStreamDestroy>;

/// Of the current device; for ordering only unless `timed`.
inline event make_event(bool timed = false) {
  cudaEvent_t out = nullptr;
  require_cuda(cudaEventCreateWithFlags(&out, timed ? cudaEventDefault : cudaEventDisableTiming),
               "cudaEventCreateWithFlags");
  return event{out};
}

/// Of the current device, independent of the default stream. Its work goes before that of others:
/// who waits for it has more to do afterwards.
inline stream make_stream() {
  int lowest = 0, highest = 0;
  require_cuda(cudaDeviceGetStreamPriorityRange(&lowest, &highest),
               "cudaDeviceGetStreamPriorityRange");
  cudaStream_t out = nullptr;
  require_cuda(cudaStreamCreateWithPriority(&out, cudaStreamNonBlocking, highest),
               "cudaStreamCreateWithPriority");
  return stream{out};
}

inline void record(const event& e, cudaStream_t on) {
  require_cuda(cudaEventRecord(e.get(), on), "cudaEventRecord");
}
inline void wait(cudaStream_t who, const event& e) {
  require_cuda(cudaStreamWaitEvent(who, e.get(), 0), "cudaStreamWaitEvent");
}

/// Memory of the current device that other devices can reach. Not initialised.
class device_memory {
public:
  device_memory() = default;
  explicit device_memory(std::size_t bytes) {
    void* data = nullptr;
    require_cuda(cudaMalloc(&data, std::max<std::size_t>(bytes, 1)), "cudaMalloc");
    data_ = owned<void*, &cudaFree>{data};
  }
  void* data() const { return data_.get(); }

private:
  owned<void*, &cudaFree> data_;
};

} // namespace maskring::comm::detail
