// SPDX-License-Identifier: Apache-2.0
// Where and how a device call runs: stream, workspace, head dimensions known at compile time,
// policy.
#pragma once

#include <maskring/cuda/workspace.cuh>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "maskring: kernels need compute capability 8.0 or later; tell nvcc, as in -arch=sm_80"
#endif

namespace maskring::cuda {

/// A head dimension for which kernels are compiled, of queries and keys and of values. Calls with
/// smaller ones run on it too, filled with zeros. At most 256.
template <int Qk, int V = Qk>
struct head_dim {
  static_assert(Qk >= 1 && Qk <= 256 && V >= 1 && V <= 256,
                "maskring: head dimensions are 1 to 256");
  static constexpr int qk = Qk;
  static constexpr int v = V;
};

/// The head dimensions that a program uses, ascending. Each one named is a set of kernels to
/// compile, per mask, score modifier and element type: naming just the ones needed keeps compile
/// times short.
template <class... Dims>
struct head_dim_list {
  static constexpr bool packs_heads = true; ///< see unpacked()
};
template <class... Dims>
struct unpacked_head_dim_list : head_dim_list<Dims...> {
  static constexpr bool packs_heads = false;
};

/// head_dims<128>: one set of kernels. head_dims<64, 128>: two.
template <int... Dims>
inline constexpr head_dim_list<head_dim<Dims>...> head_dims{};

/// head_dims_qk_v<192, 128>: queries and keys of up to 192, values of up to 128.
template <int Qk, int V>
inline constexpr head_dim_list<head_dim<Qk, V>> head_dims_qk_v{};

/// The same without the second forward kernel that computes short queries of grouped heads together
/// (see forward()): it takes as long to compile as the first.
template <class... Dims>
constexpr unpacked_head_dim_list<Dims...> unpacked(head_dim_list<Dims...>) {
  return {};
}

using default_head_dims = head_dim_list<head_dim<64>, head_dim<128>, head_dim<256>>;

/// Which family of kernels computes a call.
enum class kernel {
  automatic, ///< the fastest that can
  portable,  ///< mma.sync, compute capability 8.0 and later
  /// wgmma and tensor copies, compute capability 9.0. A forward call that these cannot compute is a
  /// std::invalid_argument; a backward call takes the portable kernel.
  hopper,
};

/// How 32-bit floats are multiplied.
enum class float_math {
  ieee, ///< as fp32 fused multiply-adds
  tf32, ///< rounded to 10 bits of mantissa, on tensor cores
};

struct policy {
  cuda::kernel kernel = cuda::kernel::automatic;
  cuda::float_math float_math = cuda::float_math::ieee;
  /// Backward passes give the same bits each time; false saves the little that taking turns costs.
  bool deterministic = true;
  /// Bytes that a block of the portable kernels may have of shared memory; 0: as many as the device
  /// allows.
  int shared_memory = 0;
  /// Calls on other streams wait to fill what multiprocessors this call leaves idle at its end.
  bool accompanied = false;
};

/// Where a device call runs; made by on().
template <class Dims = default_head_dims>
class executor {
public:
  using dims = Dims;

  executor(cudaStream_t stream, cuda::workspace& scratch, cuda::policy how = {})
      : stream_{stream}, workspace_{&scratch}, policy_{how} {}

  cudaStream_t stream() const { return stream_; }
  cuda::workspace& workspace() const { return *workspace_; }
  const cuda::policy& policy() const { return policy_; }

  executor with(const cuda::policy& how) const { return {stream_, *workspace_, how}; }

private:
  cudaStream_t stream_;
  cuda::workspace* workspace_;
  cuda::policy policy_;
};

/// Calls run on `stream` with `scratch`, by kernels compiled for the default head dimensions.
inline executor<> on(cudaStream_t stream, workspace& scratch) { return {stream, scratch}; }

/// The same, by kernels compiled for the head dimensions named:
///
/// ```cpp
/// cuda::workspace scratch;
/// const auto exec = cuda::on(stream, scratch, cuda::head_dims<128>);
/// forward(exec, inputs{q, k, v}, results{out, lse}, mask);
/// ```
template <class Dims>
executor<Dims> on(cudaStream_t stream, workspace& scratch, Dims) {
  return {stream, scratch};
}

} // namespace maskring::cuda
