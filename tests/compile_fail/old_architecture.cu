// SPDX-License-Identifier: Apache-2.0
// Compiled for compute capability 7.5, as nvcc 13 does where it is not told otherwise.
// expect: kernels need compute capability 8\.0 or later; tell nvcc, as in -arch=sm_80
#include <maskring/cuda/executor.cuh>
