// SPDX-License-Identifier: Apache-2.0
// Attention as its definition says, in double precision: what everything else is checked against.
#pragma once

#include "problem.hpp"

#include <cmath>
#include <limits>
#include <thread>

namespace flex {

/// Output and gradients of the whole problem, dense. `mask(b, h, q, kv)` on ints, `score(s, b, h,
/// q, kv)` on duals of doubles. Returns the size of the largest score, by which fp32 rounds.
template <class Mask, class Score>
double dense(const sizes& n, const whole<float>& in, const Mask& mask, const Score& score,
             whole<double>& result) {
  const auto head = [&](int b, int kv_head, double& largest) {
    const double scale = 1 / std::sqrt(static_cast<double>(n.dim));
    const std::size_t keys = static_cast<std::size_t>(n.tokens);
    std::vector<double> p(keys), slope(keys);
    for (int h = kv_head * n.group(); h < (kv_head + 1) * n.group(); ++h) {
      for (int i = 0; i < n.tokens; ++i) {
        const float* q = in.q.row(b, h, i);
        double maximum = -std::numeric_limits<double>::infinity(), sum = 0;
        for (int j = 0; j < n.tokens; ++j) {
          const float* k = in.k.row(b, kv_head, j);
          double s = 0;
          for (int d = 0; d < n.dim; ++d)
            s += static_cast<double>(q[d]) * static_cast<double>(k[d]);
          const auto changed = score(maskring::dual<double>{s * scale, 1.0}, b, h, i, j);
          p[j] = mask(b, h, i, j) ? changed.value : -std::numeric_limits<double>::infinity();
          slope[j] = changed.derivative;
          if (std::isfinite(p[j])) largest = std::max(largest, std::abs(p[j]));
          maximum = std::max(maximum, p[j]);
        }
        if (maximum == -std::numeric_limits<double>::infinity()) continue;
        for (double& x : p) sum += x = std::exp(x - maximum);
        double* out = result.out.row(b, h, i);
        for (int j = 0; j < n.tokens; ++j) {
          p[j] /= sum;
          const float* v = in.v.row(b, kv_head, j);
          for (int d = 0; d < n.v_dim; ++d) out[d] += p[j] * static_cast<double>(v[d]);
        }
        // dv = pᵀ·dout, ds = p∘(dout·vᵀ − Σ dout·out)∘score′·scale, dq = ds·k, dk = dsᵀ·q.
        const float* dout = in.dout.row(b, h, i);
        double delta = 0;
        for (int d = 0; d < n.v_dim; ++d) delta += static_cast<double>(dout[d]) * out[d];
        for (int j = 0; j < n.tokens; ++j) {
          if (p[j] == 0) continue;
          const float *k = in.k.row(b, kv_head, j), *v = in.v.row(b, kv_head, j);
          double *dq = result.dq.row(b, h, i), *dk = result.dk.row(b, kv_head, j),
                 *dv = result.dv.row(b, kv_head, j);
          double dp = 0;
          for (int d = 0; d < n.v_dim; ++d) {
            dp += static_cast<double>(dout[d]) * static_cast<double>(v[d]);
            dv[d] += p[j] * static_cast<double>(dout[d]);
          }
          const double ds = p[j] * (dp - delta) * slope[j] * scale;
          for (int d = 0; d < n.dim; ++d) {
            dq[d] += ds * static_cast<double>(k[d]);
            dk[d] += ds * static_cast<double>(q[d]);
          }
        }
      }
    }
  };
  // Key heads share nothing, so they go to as many threads as there are processors.
  const int team = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  std::vector<double> largest(static_cast<std::size_t>(team));
  std::vector<std::thread> threads;
  for (int t = 0; t < team; ++t) {
    threads.emplace_back([&, t] {
      for (int at = t; at < n.batch * n.kv_heads; at += team)
        head(at / n.kv_heads, at % n.kv_heads, largest[static_cast<std::size_t>(t)]);
    });
  }
  for (std::thread& t : threads) t.join();
  return *std::max_element(largest.begin(), largest.end());
}

} // namespace flex
