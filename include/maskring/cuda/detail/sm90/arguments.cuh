// SPDX-License-Identifier: Apache-2.0
// What the Hopper forward kernel is told.
#pragma once

#include <maskring/block/map.hpp>
#include <maskring/core/problem.hpp>
#include <maskring/cuda/detail/row_states.cuh>
#include <maskring/cuda/detail/sm90/storage.cuh>
#include <maskring/cuda/detail/work_order.hpp>
#include <maskring/score/concepts.hpp>

#include <cuda.h>

#include <type_traits>

namespace maskring::cuda::detail::sm90 {

/// Everything one launch computes. The policy and the types are part of this type because nvcc 13.0
/// cannot launch a kernel that has a namespaced struct among its own template arguments.
template <forward_policy P, class T, class O, class Mask, class Score, bool Carries = false>
struct forward_arguments {
  static constexpr forward_policy policy = P;
  static constexpr bool carries = Carries; ///< rows may be open before and after: `states`
  static constexpr bool has_score = !std::is_same_v<Score, maskring::score::none>;
  using input_type = T;
  using output_type = O;
  /// Whether results leave through shared memory and the copy engine: where the next item's queries
  /// have a place of their own meanwhile, and registers are not short, as with three groups.
  static constexpr bool copies_out = sizeof(O) == 2 && P.query_stages > 1 && P.consumers() < 3 &&
                                     output_layout(P).bytes() <= query_layout(P).bytes();

  CUtensorMap q, k, v;
  CUtensorMap copied_out; ///< of `out`, if `copies_out`
  view<O, 4> out;
  view<float, 3> lse;        ///< null: not wanted
  carried previous;          ///< null: starts from nothing
  view<const float, 1> sink; ///< null: none
  block_map_view map;        ///< rows.offsets null: every pair is visible
  work_order order;
  int* next_work; ///< counts work taken; 0 before and after the kernel
  Mask mask;
  Score score;
  float scale;
  int q_len, kv_len, group;
  int q_lead;        ///< places of the first query tile before the first query
  row_states states; ///< if `carries`

  /// The first row of a query tile; negative where the tile begins before the first query.
  __device__ int first_row(int q_tile) const {
    return q_tile * P.tile.q - (P.tile.from_end ? q_lead : 0);
  }
  __device__ bool has_row(int q) const {
    return P.tile.from_end ? static_cast<unsigned>(q) < static_cast<unsigned>(q_len) : q < q_len;
  }
};

} // namespace maskring::cuda::detail::sm90
