// SPDX-License-Identifier: Apache-2.0
// Failures that CUDA reports.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace maskring::cuda {

/// A CUDA call failed; what() holds the call, the error's name and CUDA's own sentence.
class error : public std::runtime_error {
public:
  error(cudaError_t status, const char* call)
      : std::runtime_error{std::string{"maskring: "} + call + " failed: " +
                           cudaGetErrorName(status) + ", " + cudaGetErrorString(status)},
        status_{status} {}
  cudaError_t status() const { return status_; }

private:
  cudaError_t status_;
};

namespace detail {

/// @throws cuda::error unless the call succeeded.
inline void require_cuda(cudaError_t status, const char* call) {
  if (status != cudaSuccess) throw error{status, call};
}

} // namespace detail
} // namespace maskring::cuda
