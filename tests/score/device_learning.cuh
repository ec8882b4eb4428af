// SPDX-License-Identifier: Apache-2.0
// Score modifiers that learn on the device, each beside its twin on the host.
#pragma once

#include "../cp/device_problems.cuh"
#include "learning.hpp"

#include <maskring/cuda/sums.cuh>
#include <maskring/cuda/tables.cuh>
#include <maskring/score/bias.hpp>
#include <maskring/score/compose.hpp>
#include <maskring/score/rotary_part.hpp>
#include <maskring/score/softcap.hpp>

#include <optional>

namespace maskring::testing {

/// What tables and sums are made on: the default stream, waited for.
struct default_queue {
  cudaStream_t stream() const { return nullptr; }
};

/// Modifiers around another: the gradient passes through what comes after it.
template <class Bias>
auto around(const Bias& bias) {
  return score::softcap{3} >> bias >> score::softcap{0.7f};
}

/// softcap >> bias >> softcap; one row of the table for all heads, or one each.
class learned_bias {
public:
  explicit learned_bias(int heads)
      : table_{small_numbers(static_cast<std::size_t>(8 * heads)), heads, 8} {}

  auto on_host() { return around(score::bias{table_.learning(), buckets_.view()}); }
  std::vector<double> host_gradient() const { return table_.gradient(); }
  void clear_host() { table_.clear_gradient(); }

  /// A copy on the current device, with sums of its own.
  class device_copy {
  public:
    explicit device_copy(const learned_bias& from)
        : values_{default_queue{}, from.table_},
          buckets_{default_queue{}, from.buckets_},
          sums_{default_queue{}, static_cast<index_t>(from.table_.memory().size())} {
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    }
    auto modifier() const {
      return around(score::bias{values_.view().with_gradient(sums_.data()), buckets_.view()});
    }
    std::vector<double> gradient() const { return sums_.read(default_queue{}); }
    void clear() {
      sums_.clear(default_queue{});
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    }

  private:
    cuda::device_table<score::bias_table> values_;
    cuda::device_table<score::distance_buckets> buckets_;
    cuda::device_sums sums_;
  };

private:
  score::distance_buckets buckets_ = score::distance_buckets::t5(8, 90, true);
  score::bias_table table_;
};

/// The rotary part of latent attention: q_rope of every query head, k_rope of one head for all.
class learned_rotary {
public:
  explicit learned_rotary(const case_sizes& s)
      : q_{random_tensor<float, 4>(random_, {s.shape.batch, s.shape.q_heads, s.q_len, dim})},
        k_{random_tensor<float, 4>(random_, {s.shape.batch, 1, s.kv_len, dim})},
        dq_{{s.shape.batch, s.shape.q_heads, s.q_len, dim}},
        dk_{{s.shape.batch, 1, s.kv_len, dim}} {}

  auto on_host() { return score::rotary_part{*q_, *k_, scale}.with_gradient(*dq_, *dk_); }
  std::vector<double> host_gradient() const { return joined(values_of(dq_), values_of(dk_)); }
  void clear_host() { dq_.fill({}), dk_.fill({}); }

  class device_copy {
  public:
    explicit device_copy(const learned_rotary& from)
        : q_{from.q_},
          k_{from.k_},
          dq_{default_queue{}, (*from.q_).size()},
          dk_{default_queue{}, (*from.k_).size()} {
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    }
    auto modifier() const {
      return score::rotary_part{view<const float, 4>{*q_}, view<const float, 4>{*k_}, scale}
          .with_gradient({dq_.data(), (*q_).extents}, {dk_.data(), (*k_).extents});
    }
    std::vector<double> gradient() const {
      return joined(dq_.read(default_queue{}), dk_.read(default_queue{}));
    }
    void clear() {
      dq_.clear(default_queue{}), dk_.clear(default_queue{});
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    }

  private:
    on_device<float, 4> q_, k_;
    cuda::device_sums dq_, dk_;
  };

private:
  static constexpr index_t dim = 8;
  static constexpr float scale = 0.3f;
  static std::vector<double> joined(std::vector<double> a, const std::vector<double>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  }
  std::mt19937_64 random_{3};
  tensor<float, 4> q_, k_;
  tensor<score::exact_sum, 4> dq_, dk_;
};

/// What is learned in double precision, and how far a computation that rounds weights and outputs
/// to T is off.
struct expected_gradient {
  std::vector<double> exact;
  double usual_error = 0;

  template <class T, class Mask, class Learned>
  expected_gradient(const whole_inputs<T>& in, const Mask& mask, Learned& learned) {
    const auto gradient = [&](const auto&... round) {
      learned.clear_host();
      hand_gradients(in, mask, learned.on_host(), round...);
      return learned.host_gradient();
    };
    exact = gradient();
    // Of a few sums one rounding's largest error says little.
    for (const double grain : {1.0, 1.2, 1.4, 1.7}) {
      usual_error = std::max(usual_error, gradient_error(gradient(rounding<T>{grain}), exact));
    }
  }

  void check(const std::vector<double>& found) const {
    // dq's allowance: of few sums, one in 30 draws was 1.7 times as far off as four others.
    CHECK(gradient_error(found, exact) <= 2.5 * usual_error + 1e-5);
  }
};

} // namespace maskring::testing
