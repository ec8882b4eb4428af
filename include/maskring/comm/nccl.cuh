// SPDX-License-Identifier: Apache-2.0
// Ranks that are processes, or threads with a GPU each, over NCCL.
#pragma once

#include <maskring/comm/environment.hpp>
#include <maskring/comm/nccl/communicator.cuh>
#include <maskring/comm/rendezvous.hpp>

namespace maskring::comm {

/// The communicator of all processes that torchrun, mpirun or srun has started with this one, on
/// GPU `local rank` (modulo the GPUs that are visible), which it makes the current device. A
/// process that no launcher started is alone.
///
/// Rank 0 gives NCCL's identifier to the others at MASTER_ADDR, one of the eight ports from
/// MASTER_PORT on (the next one where torchrun itself listens); with NCCL_COMM_ID=host:port NCCL
/// does that by itself.
/// @throws std::invalid_argument listing the variables that were found, where they do not say who
///         this process is; rendezvous_failed; nccl_error; timed_out; cuda::error.
inline nccl from_environment(const nccl_options& opt = {}) {
  const environment env = read_environment();
  int devices = 0;
  detail::require_cuda(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  detail::require_cuda(cudaSetDevice(env.local_rank % devices), "cudaSetDevice");
  ncclUniqueId id{};
  if (env.rank == 0 || process_variable("NCCL_COMM_ID")) {
    const ncclResult_t status = ncclGetUniqueId(&id);
    if (status != ncclSuccess) throw nccl_error{status, "ncclGetUniqueId"};
  }
  if (!process_variable("NCCL_COMM_ID")) {
    const meeting_point where{env.address, env.port + (env.port_taken ? 1 : 0), 8};
    if (env.size > 1) {
      broadcast_from_root(where, env.rank, env.size, std::as_writable_bytes(std::span{&id, 1}),
                          opt.time_limit);
    }
  }
  return nccl{id, env.rank, env.size, opt};
}

} // namespace maskring::comm
