// SPDX-License-Identifier: Apache-2.0
// Context parallelism on devices.
#pragma once

#include <maskring/comm/detail/device_objects.cuh>
#include <maskring/cp/backend.hpp>
#include <maskring/cp/detail/driver.hpp>
#include <maskring/cp/detail/move_kernels.cuh>
#include <maskring/cuda/backward.cuh>
#include <maskring/cuda/block_map.cuh>
#include <maskring/cuda/forward.cuh>

#include <optional>
#include <span>

namespace maskring::cp {

/// Drivers on cuda::on(stream, workspace), with comm::local or comm::nccl.
///
/// Everything is queued on the stream, and nothing waits for it once block maps and buffers exist
/// (after the first forward and the first backward call of a driver). Masks that read tables of the
/// device need a plan made from their host counterpart.
template <class Dims>
struct backend<cuda::executor<Dims>> {
  using executor = cuda::executor<Dims>;

  static cudaStream_t queue(const executor& exec) { return exec.stream(); }

  template <class A, class B>
  static void copy(const executor& exec, const view<const A, 4>& from, const view<B, 4>& to) {
    if constexpr (std::is_same_v<A, B>) {
      if (detail::is_packed(from) && detail::is_packed(to)) {
        if (to.size() == 0) return;
        cuda::detail::require_cuda(cudaMemcpyAsync(to.data, from.data,
                                                   static_cast<std::size_t>(to.size()) * sizeof(A),
                                                   cudaMemcpyDeviceToDevice, exec.stream()),
                                   "cudaMemcpyAsync");
        return;
      }
    }
    detail::move(from, to, detail::assign{}, exec.stream());
  }

  static void add(const executor& exec, const view<const float, 4>& from,
                  const view<float, 4>& to) {
    detail::move(from, to, detail::accumulate{}, exec.stream());
  }

  template <class T>
  static void zero(const executor& exec, const view<T, 4>& tensor) {
    detail::fill_zero(tensor, exec.stream());
  }

  /// When the stream's work so far will be done, by events of its device.
  static timeline::instant mark(timeline& record, cudaStream_t stream) {
    struct origin {
      comm::detail::event event = comm::detail::make_event(true);
      double microseconds = 0;
    };
    const int device = comm::detail::current_device();
    const auto zero = record.keep<origin>("device " + std::to_string(device), [&] {
      auto out = std::make_shared<origin>();
      comm::detail::record(out->event, stream);
      cuda::detail::require_cuda(cudaEventSynchronize(out->event.get()), "cudaEventSynchronize");
      out->microseconds = record.microseconds();
      return out;
    });
    const auto here = std::make_shared<comm::detail::event>(comm::detail::make_event(true));
    comm::detail::record(*here, stream);
    return [zero, here] {
      float ms = 0;
      cuda::detail::require_cuda(cudaEventSynchronize(here->get()), "cudaEventSynchronize");
      cuda::detail::require_cuda(cudaEventElapsedTime(&ms, zero->event.get(), here->get()),
                                 "cudaEventElapsedTime");
      return zero->microseconds + 1000.0 * static_cast<double>(ms);
    };
  }

  template <mask_mod Mask>
  static kept_map make_map(const executor& exec, const Mask& mask, const map_shape& sizes,
                           tile_shape tile) {
    auto map = std::make_shared<cuda::block_map>(cuda::make_block_map(exec, mask, sizes, tile));
    map->detach_from_stream(); // drivers keep it, and their callers' streams may go before them
    return {map->view(), map};
  }

  template <class Mask, class T, class O>
  static tile_shape forward_tile(const executor& exec, const inputs<T>& in, const results<O>& out) {
    return cuda::forward_tile<Mask>(exec, in, out);
  }

  static executor among_others(const executor& exec) {
    cuda::policy how = exec.policy();
    how.accompanied = true;
    return exec.with(how);
  }

  /// Bytes in device memory, as long as the result lives.
  static std::shared_ptr<const std::uint8_t> keep(const executor& exec,
                                                  std::span<const std::uint8_t> bytes) {
    const auto memory = std::make_shared<comm::detail::device_memory>(bytes.size());
    cuda::detail::require_cuda(cudaMemcpyAsync(memory->data(), bytes.data(), bytes.size(),
                                               cudaMemcpyHostToDevice, exec.stream()),
                               "cudaMemcpyAsync");
    cuda::detail::require_cuda(cudaStreamSynchronize(exec.stream()), "cudaStreamSynchronize");
    return {memory, static_cast<const std::uint8_t*>(memory->data())};
  }

  template <class Mask, class T, class O>
  static std::optional<tile_shape> step_tile(const executor& exec, const inputs<T>& in,
                                             const results<O>& out) {
    return cuda::detail::step_tile(exec, in, out);
  }
  static constexpr index_t state_width(index_t v_dim) {
    return cuda::detail::row_states::width(v_dim);
  }
  template <class T, class O, class Mask, class Score>
  static void forward_step(const executor& exec, const inputs<T>& in, const results<O>& out,
                           const Mask& mask, const block_map_view& map, const Score& score,
                           const options& opt, const open_tiles& open) {
    cuda::detail::forward_step(exec, in, out, mask, map, score, opt,
                               {open.sums, open.maximum, open.total, open.parts});
  }

  template <class... Arguments>
  static void forward(const executor& exec, const Arguments&... arguments) {
    maskring::forward(exec, arguments...);
  }
  template <class... Arguments>
  static void backward(const executor& exec, const Arguments&... arguments) {
    maskring::backward(exec, arguments...);
  }
  template <class T>
  static constexpr bool adds_up_dq = !std::is_same_v<T, float>;
  template <class T, class O, class D, class G, class Mask, class Score>
  static void backward_step(const executor& exec, const saved<T, O>& in, const upstream<D>& up,
                            const view<G, 4>& dq, const gradients<float>& keys, const Mask& mask,
                            const block_map_view& map, const Score& score, const options& opt,
                            bool adds, bool first, bool last) {
    cuda::detail::backward_step(exec, in, up, dq, keys, mask, map, score, opt, adds, {first, last});
  }
  template <class T, class O, class D, class Mask, class Score>
  static void backward_with_new_keys(const executor& exec, const saved<T, O>& in,
                                     const upstream<D>& up, const gradients<float>& grad,
                                     const Mask& mask, const block_map_view& map,
                                     const Score& score, const options& opt) {
    cuda::detail::backward(exec, in, up, grad, mask, &map, score, opt, {true, false});
  }
};

} // namespace maskring::cp
