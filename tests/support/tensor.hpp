// SPDX-License-Identifier: Apache-2.0
// Tensors that own their memory, for tests: filled at random, laid out as asked, compared.
#pragma once

#include <maskring/core/float16.hpp>
#include <maskring/core/view.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <tuple>
#include <vector>

namespace maskring::testing {

/// How a tensor lies in memory. Views have the shape asked for in every case.
enum class layout {
  dense,  ///< row-major
  swapped ///< the two middle dimensions swapped: [batch, sequence, head, dim], rows padded
};

template <class T, int Rank>
class tensor {
public:
  using element_type = T;

  tensor() = default;
  explicit tensor(const std::array<index_t, Rank>& shape, layout order = layout::dense) {
    std::array<int, Rank> dims; // from the innermost outwards
    for (int d = 0; d < Rank; ++d) dims[d] = Rank - 1 - d;
    if constexpr (Rank >= 3) {
      if (order == layout::swapped) std::swap(dims[Rank - 2], dims[Rank - 3]);
    }
    index_t stride = 1;
    for (int d : dims) {
      view_.extents[d] = shape[d];
      view_.strides[d] = stride;
      stride *= shape[d];
      if (order == layout::swapped && d == Rank - 1) stride += 3;
    }
    data_.assign(static_cast<std::size_t>(std::max<index_t>(stride, 1)), T{});
  }

  view<T, Rank> span() { return at(data_.data()); }
  view<const T, Rank> span() const { return at(data_.data()); }
  view<T, Rank> operator*() { return span(); }
  view<const T, Rank> operator*() const { return span(); }

  template <class... Index>
  T& operator()(Index... index) {
    return span()(index...);
  }
  template <class... Index>
  const T& operator()(Index... index) const {
    return span()(index...);
  }

  index_t extent(int d) const { return view_.extents[d]; }
  std::vector<T>& storage() { return data_; }
  const std::vector<T>& storage() const { return data_; }

  tensor& fill(T value) {
    std::fill(data_.begin(), data_.end(), value);
    return *this;
  }

private:
  template <class U>
  view<U, Rank> at(U* data) const {
    view<U, Rank> out;
    out.data = data;
    std::copy_n(view_.extents, Rank, out.extents);
    std::copy_n(view_.strides, Rank, out.strides);
    return out;
  }

  std::vector<T> data_;
  view<T, Rank> view_;
};

/// Calls `visit` with the indices of every entry of a tensor of this shape.
template <int Rank, class Visit>
void for_each_index(const index_t (&extents)[Rank], Visit visit) {
  std::array<index_t, Rank> at{};
  for (index_t e : extents) {
    if (e == 0) return;
  }
  for (;;) {
    std::apply(visit, at);
    int d = Rank - 1;
    while (d >= 0 && ++at[d] == extents[d]) at[d--] = 0;
    if (d < 0) return;
  }
}

/// A tensor of unit-normal numbers, rounded to T.
template <class T, int Rank>
tensor<T, Rank> random_tensor(std::mt19937_64& random, const std::array<index_t, Rank>& shape,
                              layout order = layout::dense) {
  tensor<T, Rank> out{shape, order};
  std::normal_distribution<double> normal;
  const auto span = out.span();
  for_each_index(span.extents,
                 [&](auto... i) { span(i...) = T(static_cast<float>(normal(random))); });
  return out;
}
template <>
inline tensor<double, 4> random_tensor<double, 4>(std::mt19937_64& random,
                                                  const std::array<index_t, 4>& shape,
                                                  layout order) {
  tensor<double, 4> out{shape, order};
  std::normal_distribution<double> normal;
  for (double& x : out.storage()) x = normal(random);
  return out;
}

template <class T>
double to_double(T x) {
  if constexpr (element<T>) {
    return static_cast<double>(static_cast<float>(x));
  } else {
    return static_cast<double>(x);
  }
}

/// max |a − b|; equal infinities differ by 0, and a NaN on either side gives infinity.
template <class A, class B, int Rank>
double max_error(view<A, Rank> a, view<B, Rank> b) {
  double worst = 0;
  for_each_index(a.extents, [&](auto... i) {
    const double x = to_double(a(i...)), y = to_double(b(i...));
    const double error = x == y ? 0 : std::abs(x - y);
    worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
  });
  return worst;
}
template <class A, class B, int Rank>
double max_error(const tensor<A, Rank>& a, const tensor<B, Rank>& b) {
  return max_error(a.span(), b.span());
}

} // namespace maskring::testing
