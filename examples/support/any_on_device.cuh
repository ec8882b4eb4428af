// SPDX-License-Identifier: Apache-2.0
// One type for all masks on a device, and one for all score modifiers, for programs that choose
// theirs at run time.
#pragma once

#include "any_mask.hpp"
#include "any_score.hpp"
#include "device_tables.cuh"

#include <maskring/comm/detail/device_objects.cuh>

namespace examples {

/// A mask behind a function of the device that it was made on: slower an element than a mask of its
/// own type, but kernels are compiled once for all of them. Its tiles are found by their elements.
class device_mask {
public:
  using function = bool (*)(const void*, int, int, int, int);

  constexpr device_mask(const void* mask, function element) : mask_{mask}, element_{element} {}
  constexpr bool operator()(int b, int h, int q, int kv) const {
    return element_(mask_, b, h, q, kv);
  }
  friend constexpr bool operator==(const device_mask&, const device_mask&) = default;

private:
  const void* mask_;
  function element_;
};

/// A score modifier behind functions of the device that it was made on.
class device_score {
public:
  template <class Number>
  using function = Number (*)(const void*, Number, int, int, int, int);
  struct functions {
    function<float> on_float;
    function<maskring::dual<float>> on_dual;
    friend constexpr bool operator==(const functions&, const functions&) = default;
  };

  constexpr device_score(const void* score, const functions& call) : score_{score}, call_{call} {}
  constexpr float operator()(float s, int b, int h, int q, int kv) const {
    return call_.on_float(score_, s, b, h, q, kv);
  }
  constexpr maskring::dual<float> operator()(maskring::dual<float> s, int b, int h, int q,
                                             int kv) const {
    return call_.on_dual(score_, s, b, h, q, kv);
  }
  friend constexpr bool operator==(const device_score&, const device_score&) = default;

private:
  const void* score_;
  functions call_;
};

namespace detail {

template <class Mask>
__device__ bool call_mask(const void* mask, int b, int h, int q, int kv) {
  return static_cast<bool>((*static_cast<const Mask*>(mask))(b, h, q, kv));
}
template <class Score, class Number>
__device__ Number call_score(const void* score, Number s, int b, int h, int q, int kv) {
  return (*static_cast<const Score*>(score))(s, b, h, q, kv);
}

// Only the device knows where its functions are.
template <class Mask>
__global__ void find_mask(device_mask::function* at) {
  *at = &call_mask<Mask>;
}
template <class Score>
__global__ void find_score(device_score::functions* at) {
  *at = {&call_score<Score, float>, &call_score<Score, maskring::dual<float>>};
}

/// Memory of the current device.
class device_objects {
public:
  template <class T>
  const T* copy(const T& object) {
    using namespace maskring::comm::detail;
    memory_.push_back(std::make_shared<device_memory>(sizeof(T)));
    require_cuda(cudaMemcpy(memory_.back()->data(), &object, sizeof(T), cudaMemcpyHostToDevice),
                 "cudaMemcpy");
    return static_cast<const T*>(memory_.back()->data());
  }
  /// What `kernel<<<1, 1>>>(T*)` writes.
  template <class T, class Kernel>
  T ask(Kernel kernel) {
    using namespace maskring::comm::detail;
    const device_memory there{sizeof(T)};
    kernel<<<1, 1>>>(static_cast<T*>(there.data()));
    require_cuda(cudaGetLastError(), "the launch of a kernel that looks up a function");
    T out;
    require_cuda(cudaMemcpy(&out, there.data(), sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return out;
  }

private:
  std::vector<std::shared_ptr<maskring::comm::detail::device_memory>> memory_;
};

} // namespace detail

/// Keeps masks on the current device, and their tables, for named_masks.
class device_masks {
public:
  device_tables& tables() { return tables_; }
  template <class Mask>
  device_mask operator()(const Mask& mask) {
    return {objects_.copy(mask), objects_.ask<device_mask::function>(&detail::find_mask<Mask>)};
  }

private:
  device_tables tables_{nullptr};
  detail::device_objects objects_;
};

/// Keeps score modifiers on the current device, and their tables, for named_scores.
class device_scores {
public:
  device_tables& tables() { return tables_; }
  template <class Score>
  device_score operator()(const Score& score) {
    return {objects_.copy(score),
            objects_.ask<device_score::functions>(&detail::find_score<Score>)};
  }

private:
  device_tables tables_{nullptr};
  detail::device_objects objects_;
};

} // namespace examples
