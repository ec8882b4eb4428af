// SPDX-License-Identifier: Apache-2.0
// Context parallelism on the host.
#pragma once

#include <maskring/block/build.hpp>
#include <maskring/comm/concepts.hpp>
#include <maskring/cp/backend.hpp>
#include <maskring/cpu/host.hpp>

namespace maskring::cp {

template <>
struct backend<host> {
  static comm::host_queue queue(const host&) { return {}; }

  template <class A, class B>
  static void copy(const host&, const view<const A, 4>& from, const view<B, 4>& to) {
    for_each_row(to, [&](index_t b, index_t h, index_t i) {
      for (index_t d = 0; d < to.extent(3); ++d) {
        if constexpr (std::is_same_v<A, B>) {
          to(b, h, i, d) = from(b, h, i, d);
        } else {
          to(b, h, i, d) = static_cast<B>(from(b, h, i, d));
        }
      }
    });
  }

  static void add(const host&, const view<const float, 4>& from, const view<float, 4>& to) {
    for_each_row(to, [&](index_t b, index_t h, index_t i) {
      for (index_t d = 0; d < to.extent(3); ++d) to(b, h, i, d) += from(b, h, i, d);
    });
  }

  /// Method: W. Kahan, "Further remarks on reducing truncation errors", 1965.
  static void add(const host&, const view<const float, 4>& from, const view<float, 4>& to,
                  const view<float, 4>& lost) {
    for_each_row(to, [&](index_t b, index_t h, index_t i) {
      for (index_t d = 0; d < to.extent(3); ++d) {
        const float before = to(b, h, i, d), term = from(b, h, i, d) - lost(b, h, i, d);
        to(b, h, i, d) = before + term;
        lost(b, h, i, d) = to(b, h, i, d) - before - term;
      }
    });
  }

  template <class T>
  static void zero(const host&, const view<T, 4>& tensor) {
    for_each_row(tensor, [&](index_t b, index_t h, index_t i) {
      for (index_t d = 0; d < tensor.extent(3); ++d) tensor(b, h, i, d) = T{};
    });
  }

  template <mask_mod Mask>
  static kept_map make_map(const host&, const Mask& mask, const map_shape& sizes, tile_shape tile) {
    auto map = std::make_shared<const block_map>(make_block_map(mask, sizes, tile));
    return {map->view(), map};
  }

  static constexpr bool keeps_rows_open = true;
  template <class... Arguments>
  static void forward(const host& executor, const Arguments&... arguments) {
    maskring::forward(executor, arguments...);
  }
  template <class... Arguments>
  static void backward(const host& executor, const Arguments&... arguments) {
    maskring::backward(executor, arguments...);
  }
  template <class T, class O, class D, class Mask, class Score>
  static void backward_with_new_keys(const host& executor, const saved<T, O>& in,
                                     const upstream<D>& up, const gradients<float>& grad,
                                     const Mask& mask, const block_map_view& map,
                                     const Score& score, options opt) {
    zero(executor, grad.dk);
    zero(executor, grad.dv);
    opt.accumulate = true;
    maskring::backward(executor, in, up, grad, mask, map, score, opt);
  }

private:
  template <class T, class Visit>
  static void for_each_row(const view<T, 4>& tensor, Visit visit) {
    for (index_t b = 0; b < tensor.extent(0); ++b) {
      for (index_t h = 0; h < tensor.extent(1); ++h) {
        for (index_t i = 0; i < tensor.extent(2); ++i) visit(b, h, i);
      }
    }
  }
};

} // namespace maskring::cp
