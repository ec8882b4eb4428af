// SPDX-License-Identifier: Apache-2.0
// Attention as one would write it down in the working precision: every matrix in full, arithmetic
// in fp32, what goes into a matrix product or to memory rounded to T. Its error is the yardstick.
#pragma once

#include "reference.hpp"

namespace maskring::testing {

template <class T>
struct straightforward_results {
  tensor<float, 4> out, dq, dk, dv;
};

template <class T, class Mask, class Score>
straightforward_results<T> straightforward(const inputs<T>& in, const view<const T, 4>& dout,
                                           const view<const float, 3>& dlse, const Mask& mask,
                                           const Score& score, float scale) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const auto rounded = [](float x) { return static_cast<float>(static_cast<T>(x)); };
  const auto number = [](auto x) { return static_cast<float>(x); };
  const index_t batch = in.q.extent(0), heads = in.q.extent(1), rows = in.q.extent(2);
  const index_t keys = in.k.extent(2), kv_heads = in.k.extent(1);
  const index_t qk = in.q.extent(3), v_dim = in.v.extent(3);
  straightforward_results<T> r{tensor<float, 4>{{batch, heads, rows, v_dim}},
                               tensor<float, 4>{{batch, heads, rows, qk}},
                               tensor<float, 4>{{batch, kv_heads, keys, qk}},
                               tensor<float, 4>{{batch, kv_heads, keys, v_dim}}};
  for (index_t b = 0; b < batch; ++b) {
    for (index_t h = 0; h < heads; ++h) {
      const index_t g = h / (heads / kv_heads);
      for (index_t i = 0; i < rows; ++i) {
        std::vector<dual<float>> s(static_cast<std::size_t>(keys));
        std::vector<float> p(s.size());
        float largest = in.sink ? in.sink(h) : -infinity, sum = 0;
        for (index_t j = 0; j < keys; ++j) {
          const int at[] = {static_cast<int>(b), static_cast<int>(h), static_cast<int>(i),
                            static_cast<int>(j)};
          s[j] = {-infinity, 0};
          if (!static_cast<bool>(mask(at[0], at[1], at[2], at[3]))) continue;
          float dot = 0;
          for (index_t d = 0; d < qk; ++d)
            dot += number(in.q(b, h, i, d)) * number(in.k(b, g, j, d));
          s[j] = score(dual<float>{dot * scale, 1.0f}, at[0], at[1], at[2], at[3]);
          largest = std::max(largest, s[j].value);
        }
        if (largest == -infinity) continue;
        for (index_t j = 0; j < keys; ++j) sum += p[j] = std::exp(s[j].value - largest);
        if (in.sink) sum += std::exp(in.sink(h) - largest);
        for (float& x : p) x /= sum;
        float delta = dlse ? -dlse(b, h, i) : 0.0f;
        for (index_t d = 0; d < v_dim; ++d) {
          float o = 0;
          for (index_t j = 0; j < keys; ++j) o += rounded(p[j]) * number(in.v(b, g, j, d));
          r.out(b, h, i, d) = rounded(o);
          delta += number(dout(b, h, i, d)) * rounded(o);
        }
        for (index_t j = 0; j < keys; ++j) {
          if (p[j] == 0) continue;
          float dp = 0;
          for (index_t d = 0; d < v_dim; ++d) {
            dp += number(dout(b, h, i, d)) * number(in.v(b, g, j, d));
            r.dv(b, g, j, d) += rounded(p[j]) * number(dout(b, h, i, d));
          }
          const float ds = rounded(p[j] * (dp - delta) * s[j].derivative);
          for (index_t d = 0; d < qk; ++d) {
            r.dq(b, h, i, d) += ds * number(in.k(b, g, j, d)) * scale;
            r.dk(b, g, j, d) += ds * number(in.q(b, h, i, d)) * scale;
          }
        }
      }
    }
  }
  for (auto* grad : {&r.dq, &r.dk, &r.dv}) {
    for (float& x : grad->storage()) x = rounded(x);
  }
  return r;
}

/// ‖a − b‖ / ‖b‖ over all entries; a NaN anywhere gives a NaN.
template <class A, class B>
double relative_error(const tensor<A, 4>& a, const tensor<B, 4>& b) {
  double difference = 0, size = 0;
  const auto left = a.span();
  const auto right = b.span();
  for_each_index(left.extents, [&](auto... i) {
    const double x = to_double(left(i...)), y = to_double(right(i...));
    difference += (x - y) * (x - y);
    size += y * y;
  });
  return size > 0 ? std::sqrt(difference / size) : std::sqrt(difference);
}

} // namespace maskring::testing
