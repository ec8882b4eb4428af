// SPDX-License-Identifier: Apache-2.0
// Timing device work by events: medians, with a cold L2 cache.
#pragma once

#include <maskring/cuda/error.cuh>

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

namespace bench {

using maskring::cuda::detail::require_cuda;

/// The model of the GPU in use.
inline std::string device_name() {
  int device = 0;
  cudaDeviceProp properties{};
  require_cuda(cudaGetDevice(&device), "cudaGetDevice");
  require_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return properties.name;
}

/// Device memory for the length of a case.
template <class T>
class device_array {
public:
  explicit device_array(std::size_t count) : count_{count} {
    require_cuda(cudaMalloc(&data_, count * sizeof(T)), "cudaMalloc");
  }
  device_array(const device_array&) = delete;
  device_array& operator=(const device_array&) = delete;
  ~device_array() { cudaFree(data_); }
  T* data() const { return data_; }
  std::size_t size() const { return count_; }

private:
  std::size_t count_;
  T* data_ = nullptr;
};

/// A stream that is waited on, and the scratch memory that evicts the L2 cache.
class device_timer {
public:
  device_timer() : evicted_{std::size_t{256} << 20} {
    require_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    require_cuda(cudaEventCreate(&start_), "cudaEventCreate");
    require_cuda(cudaEventCreate(&stop_), "cudaEventCreate");
  }
  device_timer(const device_timer&) = delete;
  device_timer& operator=(const device_timer&) = delete;
  ~device_timer() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
    cudaStreamDestroy(stream_);
  }

  cudaStream_t stream() const { return stream_; }
  void wait() const { require_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

  /// The median time in milliseconds between events around `work()`, after a pause and warming up,
  /// over as many runs as fit the budget (3 at least).
  ///
  /// Without the pause a card at its power limit would still be throttled by what ran before.
  template <class Work>
  double median_ms(Work&& work, double budget_ms = 150) {
    wait();
    std::this_thread::sleep_for(std::chrono::milliseconds{500});
    double last = 0;
    for (double warm = 0; warm < 20; warm += last) last = std::max(once(work), 1e-3);
    const int runs = std::max(static_cast<int>(budget_ms / last), 3);
    std::vector<double> times;
    for (int i = 0; i < runs; ++i) times.push_back(once(work));
    return median(times);
  }

  /// The same by the host's clock, from the call to the end of its work: what a caller waits.
  template <class Work>
  double median_wall_ms(Work&& work, int runs = 20) {
    std::vector<double> times;
    for (int i = 0; i < runs + 3; ++i) {
      wait();
      const auto begin = std::chrono::steady_clock::now();
      work();
      wait();
      const std::chrono::duration<double, std::milli> took =
          std::chrono::steady_clock::now() - begin;
      if (i >= 3) times.push_back(took.count());
    }
    return median(times);
  }

private:
  static double median(std::vector<double>& times) {
    std::sort(times.begin(), times.end());
    const std::size_t n = times.size();
    return (times[(n - 1) / 2] + times[n / 2]) / 2;
  }

  template <class Work>
  double once(Work& work) {
    require_cuda(cudaMemsetAsync(evicted_.data(), 0, evicted_.size(), stream_), "cudaMemsetAsync");
    require_cuda(cudaEventRecord(start_, stream_), "cudaEventRecord");
    work();
    require_cuda(cudaEventRecord(stop_, stream_), "cudaEventRecord");
    require_cuda(cudaEventSynchronize(stop_), "cudaEventSynchronize");
    float ms = 0;
    require_cuda(cudaEventElapsedTime(&ms, start_, stop_), "cudaEventElapsedTime");
    return ms;
  }

  device_array<char> evicted_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

} // namespace bench
