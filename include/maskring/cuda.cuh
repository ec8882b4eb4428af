// SPDX-License-Identifier: Apache-2.0
// Everything that a program with a GPU needs.
#pragma once

#include <maskring/cuda/backward.cuh>
#include <maskring/cuda/block_map.cuh>
#include <maskring/cuda/error.cuh>
#include <maskring/cuda/executor.cuh>
#include <maskring/cuda/forward.cuh>
#include <maskring/cuda/sums.cuh>
#include <maskring/cuda/tables.cuh>
#include <maskring/cuda/workspace.cuh>
#include <maskring/maskring.hpp>
