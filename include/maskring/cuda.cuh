// SPDX-License-Identifier: Apache-2.0
// Everything, with CUDA. NCCL's transport is apart, since it needs NCCL's header.
#pragma once

#include <maskring/comm/capture.cuh>
#include <maskring/comm/local.cuh>
#include <maskring/cp/cuda.cuh>
#include <maskring/cuda/backward.cuh>
#include <maskring/cuda/block_map.cuh>
#include <maskring/cuda/forward.cuh>
#include <maskring/cuda/tables.cuh>
#include <maskring/maskring.hpp>
