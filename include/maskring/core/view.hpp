// SPDX-License-Identifier: Apache-2.0
// A tensor that somebody else owns: pointer, extents and strides.
#pragma once

#include <maskring/core/range.hpp>

#include <cstddef>
#include <type_traits>
#include <utility>

namespace maskring {

/// Anything shaped like an mdspan: std::mdspan, cuda::std::mdspan and their kin.
template <class M, int Rank>
concept mdspan_like = requires(const M m) {
  m.extent(0);
  m.stride(0);
  m.data_handle();
  requires M::rank()
  == Rank;
};

/// A strided tensor of `Rank` dimensions in memory that it does not own, host or device.
///
/// Attention tensors are [batch, head, sequence, dim]; strides count elements. Trivially copyable.
template <class T, int Rank>
struct view {
  using element_type = T;

  T* data = nullptr;
  index_t extents[Rank] = {};
  index_t strides[Rank] = {};

  constexpr view() = default;

  /// Row-major over `shape`.
  constexpr view(T* pointer, const index_t (&shape)[Rank]) : data{pointer} {
    index_t stride = 1;
    for (int d = Rank - 1; d >= 0; --d) {
      extents[d] = shape[d];
      strides[d] = stride;
      stride *= shape[d];
    }
  }

  constexpr view(T* pointer, const index_t (&shape)[Rank], const index_t (&steps)[Rank])
      : data{pointer} {
    for (int d = 0; d < Rank; ++d) {
      extents[d] = shape[d];
      strides[d] = steps[d];
    }
  }

  /// From an mdspan, or from the view of the same elements that may also write them.
  template <mdspan_like<Rank> M>
  requires std::is_convertible_v<decltype(std::declval<const M&>().data_handle()), T*>
  constexpr view(const M& m) : data{m.data_handle()} {
    for (int d = 0; d < Rank; ++d) {
      extents[d] = static_cast<index_t>(m.extent(d));
      strides[d] = static_cast<index_t>(m.stride(d));
    }
  }

  constexpr index_t extent(int d) const { return extents[d]; }
  constexpr index_t stride(int d) const { return strides[d]; }
  constexpr T* data_handle() const { return data; }
  static constexpr std::size_t rank() { return Rank; }

  constexpr index_t size() const {
    index_t count = 1;
    for (index_t e : extents) count *= e;
    return count;
  }

  constexpr explicit operator bool() const { return data != nullptr; }

  /// The offset, in elements, of the entry at the given indices.
  template <class... Index>
  constexpr index_t offset(Index... index) const {
    static_assert(sizeof...(Index) == Rank);
    const index_t at[] = {static_cast<index_t>(index)...};
    index_t sum = 0;
    for (int d = 0; d < Rank; ++d) sum += at[d] * strides[d];
    return sum;
  }

  template <class... Index>
  constexpr T& operator()(Index... index) const {
    return data[offset(index...)];
  }

  /// The part [first, first + count) of dimension `d`.
  constexpr view slice(int d, index_t first, index_t count) const {
    view out = *this;
    out.data += first * strides[d];
    out.extents[d] = count;
    return out;
  }
};

template <mdspan_like<1> M>
view(const M&) -> view<typename M::element_type, 1>;
template <mdspan_like<3> M>
view(const M&) -> view<typename M::element_type, 3>;
template <mdspan_like<4> M>
view(const M&) -> view<typename M::element_type, 4>;

} // namespace maskring
