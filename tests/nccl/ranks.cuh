// SPDX-License-Identifier: Apache-2.0
// What tests over NCCL need: ranks that are processes, and memory for messages.
#pragma once

#include "processes.hpp"

#include <maskring/comm/nccl.cuh>

#include <doctest/doctest.h>

namespace maskring::testing {

using comm::nccl;

/// How many ranks can be had, and why not more.
inline int possible_ranks(std::map<std::string, std::string>& variables) {
  int devices = 0, version = 0;
  cudaGetDeviceCount(&devices);
  ncclGetVersion(&version);
  variables["MASKRING_TEST_JOB"] = "1";
  variables["NCCL_NVLS_ENABLE"] = "0";
  if (devices > 1) return std::min(devices, 4);
  if (version >= NCCL_VERSION(2, 30, 3)) {
    variables["NCCL_MULTI_RANK_GPU_ENABLE"] = "1";
    return 2;
  }
  MESSAGE("skipped: more than one rank: one GPU, and NCCL ", version,
          " gives it to one rank only (2.30.3 and later: to several)");
  return 1;
}

/// Runs the test cases of this program that match, in a process a rank, which must succeed.
inline void check_as_processes(const std::string& cases, std::chrono::seconds limit) {
  std::map<std::string, std::string> variables;
  const int ranks = possible_ranks(variables);
  if (ranks == 1) return;
  for (const ended_process& p : run_job(ranks, cases, variables, limit)) CHECK(p.exited_with(0));
}

/// Numbers in registered memory.
template <class T>
class numbers {
public:
  numbers(nccl& c, cudaStream_t stream, const std::vector<T>& values)
      : stream_{stream}, count_{values.size()}, memory_{c.allocate(count_ * sizeof(T))} {
    cudaMemcpyAsync(data(), values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice, stream_);
    cudaStreamSynchronize(stream_);
  }
  T* data() const { return static_cast<T*>(memory_.data()); }
  std::vector<T> get() const {
    std::vector<T> out(count_);
    cudaMemcpyAsync(out.data(), data(), count_ * sizeof(T), cudaMemcpyDeviceToHost, stream_);
    cudaStreamSynchronize(stream_);
    return out;
  }

private:
  cudaStream_t stream_;
  std::size_t count_;
  nccl::buffer memory_;
};

} // namespace maskring::testing
