// SPDX-License-Identifier: Apache-2.0
// Failures that NCCL reports, and those that only a clock finds.
#pragma once

#include <nccl.h>

#include <chrono>
#include <stdexcept>
#include <string>

namespace maskring::comm {

/// An NCCL call failed, or NCCL reported an error of an earlier one; what() holds the operation,
/// NCCL's name of the error and its last message.
class nccl_error : public std::runtime_error {
public:
  nccl_error(ncclResult_t status, const std::string& operation, ncclComm_t comm = nullptr)
      : std::runtime_error{"maskring: " + operation + " failed: " + ncclGetErrorString(status) +
                           last_message(comm)},
        status_{status} {}
  ncclResult_t status() const { return status_; }

private:
  static std::string last_message(ncclComm_t comm) {
    const char* text = ncclGetLastError(comm);
    return text && *text ? ", " + std::string{text} : std::string{};
  }
  ncclResult_t status_;
};

/// An operation did not end within the communicator's time limit: a peer is dead, stuck or far
/// behind. All communicators of the family have been aborted.
class timed_out : public std::runtime_error {
public:
  timed_out(const std::string& operation, int rank, int size, std::chrono::milliseconds limit)
      : std::runtime_error{"maskring: rank " + std::to_string(rank) + " of " +
                           std::to_string(size) + ": " + operation + " did not end within " +
                           std::to_string(limit.count()) + " ms: a peer is dead or stuck"},
        operation_{operation},
        limit_{limit} {}
  const std::string& operation() const { return operation_; }
  std::chrono::milliseconds limit() const { return limit_; }

private:
  std::string operation_;
  std::chrono::milliseconds limit_;
};

} // namespace maskring::comm
