// SPDX-License-Identifier: Apache-2.0
// What context parallelism asks of the machine that it runs on.
#pragma once

#include <maskring/block/map.hpp>
#include <maskring/mask/basic.hpp>
#include <maskring/score/concepts.hpp>

#include <memory>
#include <span>

namespace maskring::cp {

/// A block map where the attention calls can read it, and what keeps its memory.
struct kept_map {
  block_map_view view;
  std::shared_ptr<const void> owner;
};

/// The state of rows between the calls of several steps, in an order of the kernels' own.
struct open_tiles {
  view<float, 4> sums;                 ///< [batch, q_heads, q_len, state_width(v_dim)]
  view<float, 3> maximum, total;       ///< [batch, q_heads, q_len]
  const std::uint8_t* parts = nullptr; ///< what becomes of each query tile: bits of tile_part
};

/// What a driver asks of an execution context `Exec`, as static functions of a specialisation:
///
/// - `queue(exec)`: what orders its work, for communicators (comm::host_queue, or a stream)
/// - `copy(exec, from, to)`: between views of one shape and any strides, of one element type or
///   from float to another (rounding once)
/// - `add(exec, from, to)`: to += from, floats
/// - optionally `add(exec, from, to, lost)`: the same, with what `to` loses by rounding kept in
///   `lost`, which begins at zero
/// - `zero(exec, tensor)`
/// - `make_map(exec, mask, map_shape, tile)`: a kept_map
/// - optionally `forward_tile<Mask>(exec, inputs, results)`: the tile of forward calls where the
///   caller has not chosen one
/// - optionally `mark(timeline, queue)`: the timeline::instant at which the queue's work is done
/// - `forward(exec, inputs, results, mask, block_map_view, score, options)` and `backward(exec,
///   saved, upstream, gradients, mask, block_map_view, score, options)`: attention. Forward may
///   find `results` in the memory of `inputs::previous`.
/// - optionally `keeps_rows_open = true`: forward takes an open_rows after the options
/// - optionally `among_others(exec)`, for calls of ranks that share a device
/// - optionally, for one forward call a step whatever becomes of the rows: `step_tile<Mask>(exec,
///   inputs, results)`, the tile of such calls or nothing where they cannot be had;
///   `forward_step(…)`, as forward(), with open_tiles after the options; `state_width(v_dim)`, how
///   long their rows of sums are; `keep(exec, bytes)`, memory for the parts of tiles
/// - optionally, for backward calls that add up dq among themselves: `adds_up_dq<T>`, whether there
///   are any for inputs of T; `backward_step(exec, saved, upstream, dq, gradients (dk, dv, dsink),
///   mask, block_map_view, score, options, adds, first, last)`, all over the same queries; the last
///   one writes dq and dsink
/// - `backward_with_new_keys(…)`: as backward(), but it adds to dq and dsink and writes dk and dv,
///   all floats
///
/// All work goes in the queue's order; nothing waits for the device.
template <class Exec>
struct backend;

template <class Exec>
concept attention_backend = requires(const Exec& exec, view<const float, 4> from, view<float, 4> to,
                                     options opt, inputs<float> in, results<float> out,
                                     saved<float, float> kept, upstream<float> up,
                                     gradients<float> grad, block_map_view map) {
  backend<Exec>::queue(exec);
  backend<Exec>::copy(exec, from, to);
  backend<Exec>::add(exec, from, to);
  backend<Exec>::zero(exec, to);
  {
    backend<Exec>::make_map(exec, mask::full{}, map_shape{}, tile_shape{})
    } -> std::same_as<kept_map>;
  backend<Exec>::forward(exec, in, out, mask::full{}, map, score::none{}, opt);
  backend<Exec>::backward(exec, kept, up, grad, mask::full{}, map, score::none{}, opt);
  backend<Exec>::backward_with_new_keys(exec, kept, up, grad, mask::full{}, map, score::none{},
                                        opt);
};

template <class Exec>
concept compensating_backend = requires(const Exec& exec, view<const float, 4> from,
                                        view<float, 4> to) {
  backend<Exec>::add(exec, from, to, to);
};

template <class Exec>
concept open_backend = requires {
  requires backend<Exec>::keeps_rows_open;
};

template <class Exec>
concept stepping_backend = requires(const Exec& exec, std::span<const std::uint8_t> parts) {
  backend<Exec>::keep(exec, parts);
};

template <class Exec, class T>
inline constexpr bool adds_up_dq = [] {
  if constexpr (requires { backend<Exec>::template adds_up_dq<T>; }) {
    return backend<Exec>::template adds_up_dq<T>;
  } else {
    return false;
  }
}();

template <attention_backend Exec>
using queue_of = decltype(backend<Exec>::queue(std::declval<const Exec&>()));

} // namespace maskring::cp
