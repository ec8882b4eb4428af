// SPDX-License-Identifier: Apache-2.0
// Every named mask and score modifier gives on the device what it gives on the host: elements,
// verdicts over ranges with and without strides, scores, derivatives, gradients of tables.
#include "../../examples/support/device_tables.cuh"
#include "../../examples/support/mask_names.hpp"
#include "../../examples/support/score_names.hpp"
#include "../../examples/support/tables.hpp"

#include <maskring/shard/rewrite.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <vector>

using namespace maskring;

namespace {

constexpr examples::mask_shape shape{2, 3, 389, 397};
constexpr int questions = 4096;

struct question {
  int b, h, q, kv;
  tile where;
};

std::vector<question> ask_around() {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random{seed};
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  const auto part = [&](int length, std::uint8_t axis) {
    const int step = below(2) ? 1 : 1 + below(9), first = below(length);
    const int count = below(2) ? below(8) : below(130);
    return range{first, first + std::min(count, (length - 1 - first) / step) * step, step, axis};
  };
  std::vector<question> out;
  for (int i = 0; i < questions; ++i) {
    const int b = below(shape.batch), h = below(shape.heads);
    out.push_back({b,
                   h,
                   below(shape.q_len),
                   below(shape.kv_len),
                   {part(shape.q_len, query_axis), part(shape.kv_len, key_axis), b, h}});
  }
  return out;
}

struct answer {
  char kept = 0, verdict = 0, depends = 0;
};

template <class Mask>
constexpr answer answer_of(const Mask& mask, const question& x) {
  const kleene truth = truth_of(mask, x.where);
  return {static_cast<char>(static_cast<bool>(mask(x.b, x.h, x.q, x.kv))),
          static_cast<char>(truth.value()), static_cast<char>(truth.depends())};
}

template <class Mask>
__global__ void answer_all(Mask mask, const question* asked, answer* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < questions) out[i] = answer_of(mask, asked[i]);
}

struct changed {
  float value = 0, dual_value = 0, derivative = 0;
};

template <class Score>
constexpr changed change(const Score& score, const question& x, float s) {
  const auto d = score(dual<float>{s, 1.0f}, x.b, x.h, x.q, x.kv);
  return {score(s, x.b, x.h, x.q, x.kv), d.value, d.derivative};
}

template <class Score>
__global__ void change_all(Score score, const question* asked, changed* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < questions) out[i] = change(score, asked[i], static_cast<float>(i % 41) - 20);
}

template <class Score>
__global__ void learn_all(Score score, const question* asked) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const question& x = asked[i];
  if (i < questions) score.add_gradient(1.0f / (1 + i % 7), 0.5f, x.b, x.h, x.q, x.kv);
}

template <class T>
class managed {
public:
  explicit managed(std::size_t count) : count_{count} {
    REQUIRE(cudaMallocManaged(&data_, count * sizeof(T)) == cudaSuccess);
    std::fill_n(data_, count, T{});
  }
  managed(const managed&) = delete;
  ~managed() { cudaFree(data_); }
  T* data() { return data_; }
  T& operator[](std::size_t i) { return data_[i]; }
  std::size_t size() const { return count_; }

private:
  T* data_ = nullptr;
  std::size_t count_;
};

void finish() {
  REQUIRE(cudaGetLastError() == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
}

} // namespace

TEST_CASE("masks: elements and verdicts") {
  const auto asked = ask_around();
  managed<question> there{asked.size()};
  std::copy(asked.begin(), asked.end(), there.data());
  managed<answer> answers{asked.size()};
  for (const examples::named_entry& entry : examples::mask_names) {
    INFO(entry.name);
    examples::device_tables on_device{nullptr};
    examples::host_tables on_host;
    with_mask(entry.name, shape, on_device, [&](const auto& mask, const char*) {
      answer_all<<<questions / 128, 128>>>(mask, there.data(), answers.data());
      finish();
    });
    with_mask(entry.name, shape, on_host, [&](const auto& mask, const char*) {
      int wrong_elements = 0, wrong_verdicts = 0;
      for (std::size_t i = 0; i < asked.size(); ++i) {
        const answer expected = answer_of(mask, asked[i]);
        wrong_elements += answers[i].kept != expected.kept;
        wrong_verdicts +=
            answers[i].verdict != expected.verdict || answers[i].depends != expected.depends;
      }
      CHECK(wrong_elements == 0);
      CHECK(wrong_verdicts == 0);
    });
  }
}

TEST_CASE("score modifiers: values and derivatives") {
  const auto asked = ask_around();
  managed<question> there{asked.size()};
  std::copy(asked.begin(), asked.end(), there.data());
  managed<changed> got{asked.size()};
  for (const examples::named_entry& entry : examples::score_names) {
    INFO(entry.name);
    examples::device_tables on_device{nullptr};
    examples::host_tables on_host;
    with_score(entry.name, shape, on_device, [&](const auto& score, const char*) {
      change_all<<<questions / 128, 128>>>(score, there.data(), got.data());
      finish();
    });
    with_score(entry.name, shape, on_host, [&](const auto& score, const char*) {
      double worst = 0;
      for (std::size_t i = 0; i < asked.size(); ++i) {
        const changed expected = change(score, asked[i], static_cast<float>(i % 41) - 20);
        const float scale = std::max(1.0f, std::abs(expected.value));
        worst = std::max<double>(worst, std::abs(got[i].value - expected.value) / scale);
        worst = std::max<double>(worst, std::abs(got[i].dual_value - expected.value) / scale);
        worst = std::max<double>(worst, std::abs(got[i].derivative - expected.derivative));
      }
      CHECK(worst < 1e-5);
    });
  }
}

TEST_CASE("the gradient of a table, added to from all threads") {
  const auto asked = ask_around();
  managed<question> there{asked.size()};
  std::copy(asked.begin(), asked.end(), there.data());
  const auto buckets = score::distance_buckets::t5(16, 100, true);
  score::bias_table table{std::vector<float>(3 * 16, 0.25f), 3, 16};
  const score::bias on_host{table.learning(), buckets.view()};
  for (int i = 0; i < questions; ++i) {
    const question& x = asked[static_cast<std::size_t>(i)];
    on_host.add_gradient(1.0f / (1 + i % 7), 0.5f, x.b, x.h, x.q, x.kv);
  }
  examples::device_tables keep{nullptr};
  managed<score::exact_sum> sums{3 * 16};
  const score::bias on_device{keep(table).with_gradient(sums.data()), keep(buckets)};
  learn_all<<<questions / 128, 128>>>(on_device, there.data());
  finish();
  std::vector<double> got;
  for (std::size_t i = 0; i < sums.size(); ++i) got.push_back(sums[i].value());
  CHECK(got == table.gradient()); // to the last bit: exact sums know no order
}
