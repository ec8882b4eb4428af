// SPDX-License-Identifier: Apache-2.0
// Cuts whole tensors into the shards of a layout and puts them together again.
#pragma once

#include "support/tensor.hpp"

#include <maskring/shard/layout.hpp>

namespace maskring::testing {

/// Copies between the tokens of a rank's shard and their places in the whole tensor. `to_whole`
/// gives the direction.
template <bool ToWhole, class Whole, class Local, class Layout>
void copy_shard(const Whole& whole, const Local& local, const Layout& layout, int rank) {
  const auto map = layout.map(rank);
  for_each_index(local.extents, [&](auto b, auto h, auto i, auto... d) {
    const index_t at = map(static_cast<int>(i));
    if constexpr (ToWhole) {
      whole(b, h, at, d...) = local(b, h, i, d...);
    } else {
      local(b, h, i, d...) = whole(b, h, at, d...);
    }
  });
}

template <class T, int Rank, class Layout>
tensor<T, Rank> shard_of(const tensor<T, Rank>& whole, const Layout& layout, int rank,
                         testing::layout order = testing::layout::dense) {
  std::array<index_t, Rank> shape;
  for (int d = 0; d < Rank; ++d) shape[d] = whole.extent(d);
  shape[2] = layout.size(rank);
  tensor<T, Rank> local{shape, order};
  copy_shard<false>(whole.span(), local.span(), layout, rank);
  return local;
}

template <class T, int Rank, class Layout>
void put_shard(tensor<T, Rank>& whole, const tensor<T, Rank>& local, const Layout& layout,
               int rank) {
  copy_shard<true>(whole.span(), local.span(), layout, rank);
}

} // namespace maskring::testing
