// SPDX-License-Identifier: Apache-2.0
// Adding to one number from many threads.
#pragma once

#include <atomic>
#include <concepts>

namespace maskring::score {

/// *at += x, whole even if other threads add at the same time, on the host or a device. Gradients of
/// tables are summed in double: an entry may gather billions of terms, in no fixed order.
template <std::floating_point T>
constexpr void add_shared(T* at, T x) {
#ifdef __CUDA_ARCH__
  atomicAdd(at, x);
#else
  std::atomic_ref<T>{*at}.fetch_add(x, std::memory_order_relaxed);
#endif
}

}  // namespace maskring::score
