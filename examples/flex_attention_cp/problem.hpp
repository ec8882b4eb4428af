// SPDX-License-Identifier: Apache-2.0
// The tensors of the job, whole, and what is asked for.
#pragma once

#include "support/any_layout.hpp"
#include "support/any_mask.hpp"
#include "support/any_score.hpp"

#include <maskring/core/view.hpp>
#include <maskring/cp/plan.hpp>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

namespace flex {

struct sizes {
  int batch = 8, heads = 8, kv_heads = 8, dim = 32, v_dim = 32, tokens = 128;
  int group() const { return heads / kv_heads; }
};

struct settings {
  sizes n;
  int ranks = 4;
  unsigned seed = 0;
  std::string mask = "causal", score = "none", layout = "contiguous", method = "ring",
              device = "cpu";
};

/// An array [batch, head, sequence, dim].
template <class T>
struct array {
  int shape[4] = {};
  std::vector<T> data;

  array(int batch, int heads, int tokens, int dim)
      : shape{batch, heads, tokens, dim},
        data(static_cast<std::size_t>(batch) * heads * tokens * dim) {}

  T* row(int b, int h, int i) { return data.data() + at(b, h, i); }
  const T* row(int b, int h, int i) const { return data.data() + at(b, h, i); }
  maskring::view<T, 4> span() { return {data.data(), {shape[0], shape[1], shape[2], shape[3]}}; }
  maskring::view<const T, 4> span() const {
    return {data.data(), {shape[0], shape[1], shape[2], shape[3]}};
  }

private:
  std::size_t at(int b, int h, int i) const {
    return ((static_cast<std::size_t>(b) * shape[1] + h) * shape[2] + i) * shape[3];
  }
};

/// Inputs and results of the whole problem, or of one rank's share of its tokens.
template <class T>
struct whole {
  array<T> q, k, v, dout, out, dq, dk, dv;
  std::vector<float> lse;

  whole(const sizes& n, int tokens)
      : q{n.batch, n.heads, tokens, n.dim},
        k{n.batch, n.kv_heads, tokens, n.dim},
        v{n.batch, n.kv_heads, tokens, n.v_dim},
        dout{n.batch, n.heads, tokens, n.v_dim},
        out{n.batch, n.heads, tokens, n.v_dim},
        dq{q},
        dk{k},
        dv{v},
        lse(static_cast<std::size_t>(n.batch) * n.heads * tokens) {}

  maskring::view<float, 3> lse_span() { return {lse.data(), {q.shape[0], q.shape[1], q.shape[2]}}; }
};

inline void fill_normal(whole<float>& x, unsigned seed) {
  std::mt19937 random{seed};
  std::normal_distribution<float> normal;
  for (array<float>* a : {&x.q, &x.k, &x.v, &x.dout}) {
    for (float& value : a->data) value = normal(random);
  }
}

template <class A, class B>
double max_error(const array<A>& a, const array<B>& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.data.size(); ++i) {
    const double error = std::abs(static_cast<double>(a.data[i]) - static_cast<double>(b.data[i]));
    worst = error <= worst ? worst : error; // a NaN counts
  }
  return worst;
}

template <class A, class B>
double max_gradient_error(const whole<A>& a, const whole<B>& b) {
  double worst = 0;
  for (const double error : {max_error(a.dq, b.dq), max_error(a.dk, b.dk), max_error(a.dv, b.dv)}) {
    worst = error <= worst ? worst : error;
  }
  return worst;
}

/// Between a rank's tokens and their places in the whole sequence.
template <class Whole, class Local, class Map, class Copy>
void each_token(Whole& all, Local& mine, const Map& map, Copy copy) {
  for (int b = 0; b < mine.shape[0]; ++b) {
    for (int h = 0; h < mine.shape[1]; ++h) {
      for (int i = 0; i < mine.shape[2]; ++i) {
        copy(all.row(b, h, map(i)), mine.row(b, h, i), mine.shape[3]);
      }
    }
  }
}

/// Computes the results of `x` on one rank, and in a copy of it on all; each device has its own. No
/// score modifier is a null pointer.
struct device_calls {
  void (*local)(const settings&, const examples::any_mask&, const examples::any_score*,
                whole<float>& x);
  void (*split)(const settings&, const examples::any_mask&, const examples::any_score*,
                const examples::any_layout&, whole<float>& x);
};

extern const device_calls on_host;
extern const device_calls on_cuda; // in programs with kernels

} // namespace flex
