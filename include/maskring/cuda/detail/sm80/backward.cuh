// SPDX-License-Identifier: Apache-2.0
// Launching the portable backward kernel.
#pragma once

#include <maskring/cuda/detail/device.cuh>
#include <maskring/cuda/detail/sm80/backward_kernel.cuh>

namespace maskring::cuda::detail::sm80 {

/// dk, dv and the sums of dq; queued on `stream`.
template <backward_policy P, class T, class Mask, class Score>
void backward(const backward_arguments<P, T, Mask, Score>& args, cudaStream_t stream) {
  launch(&backward_kernel<backward_arguments<P, T, Mask, Score>>,
         "the launch of sm80::backward_kernel", index_t{args.kv_tiles} * args.layers, P.threads(),
         P.bytes(), stream, args);
}

} // namespace maskring::cuda::detail::sm80
