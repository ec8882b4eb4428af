// SPDX-License-Identifier: Apache-2.0
// Block maps that a driver makes once.
#pragma once

#include <maskring/cp/backend.hpp>

namespace maskring::cp::detail {

/// The block maps of one piece of work: of its forward and its backward call, one and the same
/// unless the backend's kernels want different tiles.
class kept_maps {
public:
  /// For a forward call with these tensors. A tile that the caller did not choose is the backend's
  /// choice, where it has one.
  template <class Exec, class Inputs, class Results, mask_mod Mask>
  const block_map_view& forward(const Exec& exec, const Inputs& in, const Results& out,
                                const Mask& mask, const map_shape& lengths, tile_shape tile) {
    if constexpr (requires { backend<Exec>::template forward_tile<Mask>(exec, in, out); }) {
      if (tile == tile_shape{}) tile = backend<Exec>::template forward_tile<Mask>(exec, in, out);
    }
    return at(forward_, backward_, exec, mask, lengths, tile);
  }

  template <class Exec, mask_mod Mask>
  const block_map_view& backward(const Exec& exec, const Mask& mask, const map_shape& lengths,
                                 tile_shape tile) {
    return at(backward_, forward_, exec, mask, lengths, tile);
  }

private:
  template <class Exec, mask_mod Mask>
  static const block_map_view& at(kept_map& map, const kept_map& other, const Exec& exec,
                                  const Mask& mask, const map_shape& lengths, tile_shape tile) {
    if (!map.owner || map.view.tile != tile) {
      map = other.owner && other.view.tile == tile
                ? other
                : backend<Exec>::make_map(exec, mask, lengths, tile);
    }
    return map.view;
  }

  kept_map forward_, backward_;
};

} // namespace maskring::cp::detail
