// SPDX-License-Identifier: Apache-2.0
// What a warp that has few registers does with numbers that all of its lanes know.
#pragma once

namespace maskring::cuda::detail {

/// Up to 32 numbers that are the same in all lanes of a warp, each kept by one of them: one
/// register for all. All lanes take part in every call.
class warp_words {
public:
  __device__ int get(int word) const { return __shfl_sync(~0u, own_, word); }
  __device__ void set(int word, int value) {
    if (thread_here() % 32 == word) own_ = value;
  }

  /// This thread's index, unknown until here: what follows from it is then not computed ahead and
  /// kept.
  static __device__ int thread_here() {
    int thread = static_cast<int>(threadIdx.x);
    asm volatile("" : "+r"(thread));
    return thread;
  }
  static __device__ int lane_here() { return thread_here() % 32; }

private:
  int own_ = 0;
};

} // namespace maskring::cuda::detail
