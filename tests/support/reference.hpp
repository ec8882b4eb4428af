// SPDX-License-Identifier: Apache-2.0
// Attention as the textbook writes it: dense, in double precision, one loop after the other. It
// shares no code with the library but the views and the dual numbers of the score modifiers.
#pragma once

#include "tensor.hpp"

#include <maskring/core/dual.hpp>
#include <maskring/core/problem.hpp>

#include <cmath>
#include <limits>
#include <vector>

namespace maskring::testing {

/// The score modifier that changes nothing, for tests that need no header of score/.
struct same_score {
  constexpr auto operator()(auto s, int, int, int, int) const { return s; }
};

/// Output and log-sum-exp in double precision. With a sink, exp(sink) joins each row's denominator,
/// so lse includes it: a row that sees no key then has lse = sink, and −inf without one.
struct reference_results {
  tensor<double, 4> out;
  tensor<double, 3> lse;
};

struct reference_gradients {
  tensor<double, 4> dq, dk, dv;
  tensor<double, 1> dsink;
};

/// The scores of one query row: scale·q·k through the modifier, with its derivative; −inf (and
/// derivative 0) where the mask forbids.
template <class T, class Mask, class Score>
std::vector<dual<double>> reference_scores(const inputs<T>& in, double scale, const Mask& mask,
                                           const Score& score, index_t b, index_t h, index_t i) {
  const index_t kv_head = h / (in.q.extent(1) / in.k.extent(1));
  std::vector<dual<double>> row;
  for (index_t j = 0; j < in.k.extent(2); ++j) {
    const int at[] = {static_cast<int>(b), static_cast<int>(h), static_cast<int>(i),
                      static_cast<int>(j)};
    if (!static_cast<bool>(mask(at[0], at[1], at[2], at[3]))) {
      row.push_back({-std::numeric_limits<double>::infinity(), 0.0});
      continue;
    }
    double dot = 0;
    for (index_t d = 0; d < in.q.extent(3); ++d) {
      dot += to_double(in.q(b, h, i, d)) * to_double(in.k(b, kv_head, j, d));
    }
    row.push_back(score(dual<double>{dot * scale, 1.0}, at[0], at[1], at[2], at[3]));
  }
  return row;
}

template <class T>
double reference_scale(const inputs<T>& in, const options& opt) {
  return opt.scale > 0 ? static_cast<double>(opt.scale)
                       : 1 / std::sqrt(static_cast<double>(in.q.extent(3)));
}

/// softmax(scores)·v and the log-sum-exp of every row. The carried state counts as one more key
/// whose score is its lse and whose value is its output.
template <class T, class Mask, class Score = same_score>
reference_results reference_forward(const inputs<T>& in, const Mask& mask, const Score& score = {},
                                    const options& opt = {}) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const index_t batch = in.q.extent(0), heads = in.q.extent(1), rows = in.q.extent(2);
  const index_t keys = in.k.extent(2), v_dim = in.v.extent(3);
  reference_results result{tensor<double, 4>{{batch, heads, rows, v_dim}},
                           tensor<double, 3>{{batch, heads, rows}}};
  const double scale = reference_scale(in, opt);
  for (index_t b = 0; b < batch; ++b) {
    for (index_t h = 0; h < heads; ++h) {
      const index_t kv_head = h / (heads / in.k.extent(1));
      for (index_t i = 0; i < rows; ++i) {
        const auto s = reference_scores(in, scale, mask, score, b, h, i);
        const double carried_score =
            in.previous.out ? static_cast<double>(in.previous.lse(b, h, i)) : -infinity;
        const double sink = in.sink ? static_cast<double>(in.sink(h)) : -infinity;
        double maximum = std::max(carried_score, sink);
        for (const auto& x : s) maximum = std::max(maximum, x.value);
        result.lse(b, h, i) = -infinity;
        if (maximum == -infinity) continue;
        double sum = std::exp(carried_score - maximum) + std::exp(sink - maximum);
        for (const auto& x : s) sum += std::exp(x.value - maximum);
        result.lse(b, h, i) = maximum + std::log(sum);
        for (index_t d = 0; d < v_dim; ++d) {
          double o = 0;
          if (carried_score > -infinity) {
            o += std::exp(carried_score - maximum) * to_double(in.previous.out(b, h, i, d));
          }
          for (index_t j = 0; j < keys; ++j) {
            o += std::exp(s[j].value - maximum) * to_double(in.v(b, kv_head, j, d));
          }
          result.out(b, h, i, d) = o / sum;
        }
      }
    }
  }
  return result;
}

/// The gradients of Σ dout·out + Σ dlse·lse with respect to q, k, v and the sink logits; `dlse` may
/// be a null view. It runs its own forward pass in double precision; `in.previous` must be empty.
template <class T, class D, class Mask, class Score = same_score>
reference_gradients reference_backward(const inputs<T>& in, const upstream<D>& up, const Mask& mask,
                                       const Score& score = {}, const options& opt = {}) {
  const reference_results fwd = reference_forward(in, mask, score, opt);
  const index_t batch = in.q.extent(0), heads = in.q.extent(1), rows = in.q.extent(2);
  const index_t keys = in.k.extent(2), kv_heads = in.k.extent(1);
  const index_t qk_dim = in.q.extent(3), v_dim = in.v.extent(3);
  reference_gradients grad{tensor<double, 4>{{batch, heads, rows, qk_dim}},
                           tensor<double, 4>{{batch, kv_heads, keys, qk_dim}},
                           tensor<double, 4>{{batch, kv_heads, keys, v_dim}},
                           tensor<double, 1>{{heads}}};
  const double scale = reference_scale(in, opt);
  for (index_t b = 0; b < batch; ++b) {
    for (index_t h = 0; h < heads; ++h) {
      const index_t kv_head = h / (heads / kv_heads);
      for (index_t i = 0; i < rows; ++i) {
        const double lse = fwd.lse(b, h, i);
        if (lse == -std::numeric_limits<double>::infinity()) continue;
        double delta = up.dlse ? -static_cast<double>(up.dlse(b, h, i)) : 0.0;
        for (index_t d = 0; d < v_dim; ++d) {
          delta += to_double(up.dout(b, h, i, d)) * fwd.out(b, h, i, d);
        }
        const auto s = reference_scores(in, scale, mask, score, b, h, i);
        for (index_t j = 0; j < keys; ++j) {
          const double p = std::exp(s[j].value - lse);
          if (p == 0) continue;
          double dp = 0;
          for (index_t d = 0; d < v_dim; ++d) {
            const double g = to_double(up.dout(b, h, i, d));
            grad.dv(b, kv_head, j, d) += p * g;
            dp += g * to_double(in.v(b, kv_head, j, d));
          }
          const double ds = p * (dp - delta) * s[j].derivative * scale;
          for (index_t d = 0; d < qk_dim; ++d) {
            grad.dq(b, h, i, d) += ds * to_double(in.k(b, kv_head, j, d));
            grad.dk(b, kv_head, j, d) += ds * to_double(in.q(b, h, i, d));
          }
        }
        if (in.sink) grad.dsink(h) -= std::exp(static_cast<double>(in.sink(h)) - lse) * delta;
      }
    }
  }
  return grad;
}

} // namespace maskring::testing
