// SPDX-License-Identifier: Apache-2.0
// The row-wise parts of the backward pass, and where gradients are summed.
#pragma once

#include <maskring/core/problem.hpp>
#include <maskring/cpu/detail/matmul.hpp>
#include <maskring/cpu/detail/parallel.hpp>
#include <maskring/cpu/detail/softmax.hpp>

#include <cmath>

namespace maskring::cpu::detail {

/// Runs `visit(b, h, first, end)` over all rows of a [batch, head, sequence, …] tensor in parallel.
template <class Visit>
void for_each_row_block(int threads, index_t batch, index_t heads, index_t rows, index_t width,
                        const Visit& visit) {
  constexpr index_t step = 256;
  const index_t blocks = (rows + step - 1) / step;
  work_items items{batch * heads * blocks};
  const double operations = 4.0 * static_cast<double>(batch * heads * rows * width);
  run_workers(useful_threads(threads, items.count(), operations), items, [&] {
    for (index_t item; items.take(item);) {
      const index_t head = item / blocks, first = item % blocks * step;
      visit(head / heads, head % heads, first, std::min(rows, first + step));
    }
  });
}

/// Adds or writes rows of padded floats to one head of a gradient.
template <class G>
void store_rows(const view<G, 4>& to, index_t b, index_t h, index_t first, index_t count,
                const float* from, bool accumulate) {
  const index_t dim = to.extent(3), stride = padded(dim);
  for (index_t i = 0; i < count; ++i, from += stride) {
    G* row = &to(b, h, first + i, 0);
    if constexpr (std::is_same_v<G, float>) {
      if (accumulate) {
        for (index_t d = 0; d < dim; ++d) row[d] += from[d];
        continue;
      }
    }
    for (index_t d = 0; d < dim; ++d) row[d] = static_cast<G>(from[d]);
  }
}

/// delta = Σ dout·out − dlse of every row.
template <class T, class O, class D>
class row_terms {
public:
  row_terms(const saved<T, O>& in, const upstream<D>& up, const problem& p)
      : in_{in}, up_{up}, problem_{p}, delta_{p.batch * p.q_heads * p.q_len} {}

  void compute(int threads) {
    const auto rows = [&](index_t b, index_t h, index_t first, index_t end) {
      for (index_t i = first; i < end; ++i) {
        const float dlse = up_.dlse ? up_.dlse(b, h, i) : 0.0f;
        delta_.data()[slot(b, h, i)] =
            dot(&up_.dout(b, h, i, 0), &in_.out(b, h, i, 0), problem_.v_dim) - dlse;
      }
    };
    for_each_row_block(threads, problem_.batch, problem_.q_heads, problem_.q_len, problem_.v_dim,
                       rows);
  }

  /// The log-sum-exp in base 2 and the delta of a block of rows, a lane each. Rows that see
  /// nothing, and lanes without a row, get +inf, which makes their weights 0.
  void load(index_t b, index_t h, index_t first, int count, float* lse, float* delta) const {
    std::fill_n(lse, query_block, infinity);
    std::fill_n(delta, query_block, 0.0f);
    for (int l = 0; l < count; ++l) {
      const float value = in_.lse(b, h, first + l);
      if (value != -infinity) lse[l] = value * log2_e;
      delta[l] = delta_.data()[slot(b, h, first + l)];
    }
  }

  /// dsink = −Σ exp(sink − lse)·delta over all rows of a head, summed in double precision.
  void sink_gradient(const view<float, 1>& dsink, bool accumulate) const {
    for (index_t h = 0; h < problem_.q_heads; ++h) {
      double sum = 0;
      for (index_t b = 0; b < problem_.batch; ++b) {
        for (index_t i = 0; i < problem_.q_len; ++i) {
          const float lse = in_.lse(b, h, i);
          if (lse == -infinity) continue;
          sum -= std::exp(static_cast<double>(in_.sink(h)) - static_cast<double>(lse)) *
                 static_cast<double>(delta_.data()[slot(b, h, i)]);
        }
      }
      dsink(h) = static_cast<float>(sum) + (accumulate ? dsink(h) : 0.0f);
    }
  }

private:
  /// In sixteen partial sums, which the compiler can keep in registers.
  static float dot(const D* x, const O* y, index_t count) {
    float partial[16] = {};
    index_t d = 0;
    for (; d + 16 <= count; d += 16) {
      for (int i = 0; i < 16; ++i) {
        partial[i] += static_cast<float>(x[d + i]) * static_cast<float>(y[d + i]);
      }
    }
    for (int i = 0; d < count; ++d, ++i) {
      partial[i] += static_cast<float>(x[d]) * static_cast<float>(y[d]);
    }
    for (int width = 8; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) partial[i] += partial[i + width];
    }
    return partial[0];
  }

  index_t slot(index_t b, index_t h, index_t i) const {
    return (b * problem_.q_heads + h) * problem_.q_len + i;
  }

  saved<T, O> in_;
  upstream<D> up_;
  problem problem_;
  scratch delta_;
};

/// Where dk or dv of a span of keys is summed, over all queries and heads of a group: with what the
/// sums lose by rounding, so that they do not depend on how queries are shared out among ranks.
class key_gradient {
public:
  key_gradient(index_t keys, index_t dim)
      : width_{padded(dim)}, sum_{keys * width_}, lost_{keys * width_} {}

  void clear(index_t keys) const {
    std::fill_n(sum_.data(), keys * width_, 0.0f);
    std::fill_n(lost_.data(), keys * width_, 0.0f);
  }

  /// Adds Σ weights[key][l]·rows[l] over the `queries` lanes of a transposed block of `keys`, of
  /// which the first is the span's `first`. They are summed at once, but a few at a time where the
  /// `largest` weight of the block would make the sum large, as in rows that see few keys.
  void add(isa level, const float* weights, const float_rows& rows, index_t first, int keys,
           int queries, float largest) const {
    const int step = largest > 0.25f ? 8 : query_block, width = static_cast<int>(width_);
    for (int l = 0; l < queries; l += step) {
      multiply<left::rows, into::compensated>(
          level, {weights + l, query_block, rows.row(l), rows.stride, sum_.data() + first * width_,
                  width_, keys, width, std::min(step, queries - l), lost_.data() + first * width_});
    }
  }

  const float* sum() const { return sum_.data(); }

private:
  index_t width_;
  scratch sum_, lost_;
};

/// Where dq is summed: the caller's tensor where it has floats in whole registers, else a copy.
template <class G>
class query_gradient {
public:
  query_gradient(const view<G, 4>& to, bool accumulate) : to_{to}, accumulate_{accumulate} {
    if constexpr (std::is_same_v<G, float>) {
      if (to.extent(3) % row_padding == 0) {
        sum_ = to;
        return;
      }
    }
    const index_t shape[] = {to.extent(0), to.extent(1), to.extent(2), padded(to.extent(3))};
    sum_ = view<float, 4>{nullptr, shape};
    copy_ = scratch{sum_.size()};
    sum_.data = copy_.data();
  }

  void clear(int threads) const {
    if (!copy_.data() && accumulate_) return;
    for_each_row_block(threads, sum_.extent(0), sum_.extent(1), sum_.extent(2), sum_.extent(3),
                       [&](index_t b, index_t h, index_t first, index_t end) {
                         for (index_t i = first; i < end; ++i) {
                           std::fill_n(row(b, h, i), sum_.extent(3), 0.0f);
                         }
                       });
  }

  void store(int threads) const {
    if (!copy_.data()) return;
    for_each_row_block(threads, sum_.extent(0), sum_.extent(1), sum_.extent(2), sum_.extent(3),
                       [&](index_t b, index_t h, index_t first, index_t end) {
                         store_rows(to_, b, h, first, end - first, row(b, h, first), accumulate_);
                       });
  }

  float* row(index_t b, index_t h, index_t i) const { return &sum_(b, h, i, 0); }
  index_t stride() const { return sum_.stride(2); }

private:
  view<G, 4> to_;
  bool accumulate_;
  view<float, 4> sum_;
  scratch copy_;
};

} // namespace maskring::cpu::detail
