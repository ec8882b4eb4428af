// SPDX-License-Identifier: Apache-2.0
// The reference against finite differences of itself: the tests' own foundation.
#include <doctest/doctest.h>

#include "support/reference.hpp"

namespace {

using namespace maskring;
using namespace maskring::testing;

struct causal_by_hand {
  constexpr auto operator()(auto, auto, auto q, auto kv) const { return q >= kv; }
};
struct nothing_for_row_two {
  constexpr auto operator()(auto, auto, auto q, auto kv) const { return (q != 2) & (kv != 4); }
};
struct soft_capped {
  constexpr auto operator()(auto s, int, int h, int q, int kv) const {
    return 2.0f * tanh(s / 2.0f) + 0.1f * static_cast<float>((h + 1) * (kv - q));
  }
};

/// The loss that the gradients belong to.
template <class Mask, class Score>
double loss(const inputs<double>& in, const upstream<double>& up, const Mask& mask,
            const Score& score) {
  const auto r = reference_forward(in, mask, score);
  double sum = 0;
  for_each_index(up.dout.extents, [&](auto... i) { sum += up.dout(i...) * r.out(i...); });
  for_each_index(up.dlse.extents, [&](auto... i) {
    if (std::isfinite(r.lse(i...))) sum += static_cast<double>(up.dlse(i...)) * r.lse(i...);
  });
  return sum;
}

template <class Mask, class Score>
void check_differences(const Mask& mask, const Score& score) {
  constexpr std::uint64_t seed = 11;
  CAPTURE(seed);
  std::mt19937_64 random{seed};
  auto q = random_tensor<double, 4>(random, {1, 4, 5, 3});
  auto k = random_tensor<double, 4>(random, {1, 2, 6, 3});
  auto v = random_tensor<double, 4>(random, {1, 2, 6, 2});
  auto dout = random_tensor<double, 4>(random, {1, 4, 5, 2});
  const auto dlse = random_tensor<float, 3>(random, {1, 4, 5});
  auto sink = random_tensor<float, 1>(random, {4});
  const auto in = inputs{*q, *k, *v}.with_sink(*sink);
  const upstream up{*dout, *dlse};
  const auto grad = reference_backward(in, up, mask, score);

  const auto difference = [&](auto& x, double step) {
    const auto old = x;
    x = static_cast<std::remove_reference_t<decltype(x)>>(old + step);
    const double high = loss(in, up, mask, score), at_high = static_cast<double>(x);
    x = static_cast<std::remove_reference_t<decltype(x)>>(old - step);
    const double low = loss(in, up, mask, score), at_low = static_cast<double>(x);
    x = old;
    return (high - low) / (at_high - at_low);
  };
  const auto check = [&](auto& tensor, const auto& gradient) {
    for (std::size_t i = 0; i < tensor.storage().size(); ++i) {
      const double step = sizeof(tensor.storage()[0]) == 4 ? 1e-3 : 1e-5;
      CHECK(std::abs(difference(tensor.storage()[i], step) - gradient.storage()[i]) < 1e-6);
    }
  };
  check(q, grad.dq);
  check(k, grad.dk);
  check(v, grad.dv);
  check(sink, grad.dsink);
}

} // namespace

TEST_CASE("the reference's gradients are the differences of its output") {
  check_differences(causal_by_hand{}, same_score{});
  check_differences(nothing_for_row_two{}, soft_capped{});
}

TEST_CASE("the reference continues from a carried state as if it had seen all keys at once") {
  std::mt19937_64 random{12};
  const auto q = random_tensor<float, 4>(random, {2, 2, 7, 4});
  const auto k = random_tensor<float, 4>(random, {2, 2, 9, 4});
  const auto v = random_tensor<float, 4>(random, {2, 2, 9, 5});
  const auto whole = reference_forward(inputs{*q, *k, *v}, causal_by_hand{});
  const auto first =
      reference_forward(inputs{*q, (*k).slice(2, 0, 4), (*v).slice(2, 0, 4)}, causal_by_hand{});
  tensor<float, 4> out{{2, 2, 7, 5}};
  tensor<float, 3> lse{{2, 2, 7}};
  for (std::size_t i = 0; i < out.storage().size(); ++i) {
    out.storage()[i] = static_cast<float>(first.out.storage()[i]);
  }
  for (std::size_t i = 0; i < lse.storage().size(); ++i) {
    lse.storage()[i] = static_cast<float>(first.lse.storage()[i]);
  }
  const auto shifted = [](int b, int h, int i, int j) { return causal_by_hand{}(b, h, i, j + 4); };
  const auto second = reference_forward(
      inputs{*q, (*k).slice(2, 4, 5), (*v).slice(2, 4, 5)}.continuing({*out, *lse}), shifted);
  CHECK(max_error(second.out, whole.out) < 1e-6);
  CHECK(max_error(second.lse, whole.lse) < 1e-6);
}
