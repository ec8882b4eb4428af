// SPDX-License-Identifier: Apache-2.0
// Score modifiers of the distance between query and key.
#pragma once

#include <maskring/core/range.hpp>
#include <maskring/score/concepts.hpp>
#include <maskring/score/table.hpp>

#include <bit>

namespace maskring::score {

/// s + bias + (dkv − dq) · slope: a bias by distance around a pair whose own is known.
struct nearby_slope {
  float slope, bias;
  template <class Score>
  constexpr Score operator()(Score s, int dq, int dkv) const {
    using real = detail::real<Score>;
    return s + (static_cast<real>(dkv - dq) * static_cast<real>(slope) + static_cast<real>(bias));
  }
};

/// s + (q − kv): the first example of FlexAttention (J. Dong et al., 2024).
struct relative {
  template <class Score>
  constexpr Score operator()(Score s, int, int, int q, int kv) const {
    return s + static_cast<detail::real<Score>>(q - kv);
  }
  constexpr nearby_slope from(int q, int kv) const { return {-1, static_cast<float>(q - kv)}; }
  friend constexpr bool operator==(relative, relative) = default;
};

namespace detail {
/// 1 + x/N (1 + x/(N + 1) (…)): the exponential series from its N-th factor on. Written out, not
/// looped, so that compilers move it out of loops over elements.
template <int N, int Terms, class Real>
constexpr Real exponential_series(Real x) {
  if constexpr (N > Terms) {
    return Real{1};
  } else {
    return Real{1} + x * (Real{1} / Real{N}) * exponential_series<N + 1, Terms>(x);
  }
}

/// 2^(−power) for a power from 0 on; the least normal number from where there is none.
template <class Real>
constexpr Real inverse_power_of_two(int power) {
  if constexpr (sizeof(Real) < 8) {
    return std::bit_cast<float>((127 - min(power, 126)) << 23);
  } else {
    return std::bit_cast<double>(std::int64_t{1023 - min(power, 1022)} << 52);
  }
}

/// 2^(−8 (h + 1) / heads). Not std::exp2, which compilers leave in loops (it may set errno), and
/// over floats without a division, which takes a branch on the device.
/// @param one_head is 1 / heads.
template <class Real>
constexpr Real alibi_slope(int h, int heads, float one_head) {
  const Real inverse_heads = sizeof(Real) < 8 ? Real{one_head} : Real{1} / static_cast<Real>(heads);
  const int numerator = 8 * (h + 1);
  const int whole = static_cast<int>(static_cast<Real>(numerator) * inverse_heads);
  const Real rest = static_cast<Real>(numerator - whole * heads) * inverse_heads;
  constexpr int terms = sizeof(Real) < 8 ? 10 : 18;
  return exponential_series<1, terms>(rest * static_cast<Real>(-0.69314718055994530942)) *
         inverse_power_of_two<Real>(whole);
}
} // namespace detail

/// s + (kv − q) · slope: what ALiBi is for one head.
struct distance_slope {
  float slope;
  template <class Score>
  constexpr Score operator()(Score s, int, int, int q, int kv) const {
    using real = detail::real<Score>;
    return s + static_cast<real>(kv - q) * static_cast<real>(slope);
  }
  constexpr nearby_slope from(int q, int kv) const {
    return {slope, static_cast<float>(kv - q) * slope};
  }
  friend constexpr bool operator==(distance_slope, distance_slope) = default;
};

/// s + (kv − q) · 2^(−8 (h + 1) / heads): a penalty for distance that differs from head to head
/// (O. Press et al., ALiBi, 2021).
class alibi {
public:
  /// @throws std::invalid_argument if heads < 1.
  constexpr explicit alibi(int heads) : heads_{heads} {
    maskring::detail::require(heads >= 1, "alibi: heads is ", heads, ", expected 1 or more");
    one_head_ = 1.0f / static_cast<float>(heads);
  }
  template <class Score>
  constexpr Score operator()(Score s, int, int h, int q, int kv) const {
    using real = detail::real<Score>;
    return s + static_cast<real>(kv - q) * detail::alibi_slope<real>(h, heads_, one_head_);
  }
  constexpr distance_slope at(int, int h) const {
    return {detail::alibi_slope<float>(h, heads_, one_head_)};
  }
  friend constexpr bool operator==(alibi, alibi) = default;

private:
  int heads_;
  float one_head_ = 1;
};

/// s + (kv − q) · slope[h], for slopes that were chosen otherwise.
class alibi_slopes {
public:
  constexpr explicit alibi_slopes(const number_view& slopes) : slopes_{slopes} {}

  /// The table of the slopes. @throws std::invalid_argument if one is not finite or heads are
  /// missing.
  static number_table table(std::span<const float> slopes, index_t heads) {
    return {"alibi_slopes", slopes, heads};
  }
  template <class Score>
  constexpr Score operator()(Score s, int, int h, int q, int kv) const {
    using real = detail::real<Score>;
    return s + static_cast<real>(kv - q) * static_cast<real>(slopes_.values[h]);
  }
  constexpr distance_slope at(int, int h) const { return {slopes_.values[h]}; }
  friend constexpr bool operator==(const alibi_slopes&, const alibi_slopes&) = default;

private:
  number_view slopes_;
};

/// s + [Σ_{i < dim/2} cos(|q − kv| · 10000^(−2i/dim))] · heads / (8 (h + 1)): the inner product of
/// sinusoidal position codes as a bias (T.-C. Chi et al., Sandwich, 2023). The sums are a table.
class sandwich {
public:
  /// @throws std::invalid_argument if heads < 1.
  constexpr sandwich(const number_view& sums, int heads) : sums_{sums}, heads_{heads} {
    maskring::detail::require(heads >= 1, "sandwich: heads is ", heads, ", expected 1 or more");
  }

  /// The sums for all distances of a sequence.
  /// @throws std::invalid_argument if dim < 2 or odd, or the sequence is empty.
  static number_table table(int dim, index_t sequence) {
    maskring::detail::require(dim >= 2 && dim % 2 == 0, "sandwich: dim is ", dim,
                              ", expected an even number of 2 or more");
    maskring::detail::require(sequence >= 1, "sandwich: sequence is ", sequence,
                              ", expected 1 or more");
    std::vector<double> frequencies;
    for (int i = 0; i < dim / 2; ++i) frequencies.push_back(std::pow(10000.0, -2.0 * i / dim));
    std::vector<float> sums;
    for (index_t distance = 0; distance < sequence; ++distance) {
      double sum = 0;
      for (double f : frequencies) sum += std::cos(static_cast<double>(distance) * f);
      sums.push_back(static_cast<float>(sum));
    }
    return {"sandwich", sums, sequence};
  }

  template <class Score>
  constexpr Score operator()(Score s, int, int h, int q, int kv) const {
    using real = detail::real<Score>;
    const int distance = min(q < kv ? kv - q : q - kv, sums_.size - 1);
    return s + static_cast<real>(sums_.values[distance]) *
                   (static_cast<real>(heads_) / static_cast<real>(8 * (h + 1)));
  }
  friend constexpr bool operator==(const sandwich&, const sandwich&) = default;

private:
  number_view sums_;
  int heads_;
};

} // namespace maskring::score
