// SPDX-License-Identifier: Apache-2.0
// Every named mask and score modifier gives on the device what it gives on the host: elements,
// verdicts over ranges with and without strides, scores, derivatives, gradients of tables.
#include "../../examples/support/any_on_device.cuh"
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

/// For masks behind a function, which know no ranges. Compilers see other code there than in
/// kernels that the mask is compiled into.
__global__ void ask_all(examples::device_mask mask, const question* asked, char* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const question& x = asked[i];
  if (i < questions) out[i] = mask(x.b, x.h, x.q, x.kv);
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

/// An array on the device.
template <class T>
class device_array {
public:
  explicit device_array(std::size_t count) : device_array{std::vector<T>(count)} {}
  explicit device_array(const std::vector<T>& values) : count_{values.size()} {
    REQUIRE(cudaMalloc(&data_, bytes()) == cudaSuccess);
    REQUIRE(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice) == cudaSuccess);
  }
  device_array(const device_array&) = delete;
  ~device_array() { cudaFree(data_); }
  T* data() const { return data_; }
  /// What kernels have written.
  std::vector<T> read() const {
    REQUIRE(cudaGetLastError() == cudaSuccess);
    std::vector<T> values(count_);
    REQUIRE(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost) == cudaSuccess);
    return values;
  }

private:
  std::size_t bytes() const { return count_ * sizeof(T); }
  std::size_t count_;
  T* data_ = nullptr;
};

} // namespace

TEST_CASE("masks: elements and verdicts") {
  const auto asked = ask_around();
  const device_array<question> there{asked};
  const device_array<answer> to{asked.size()};
  const device_array<char> elements_to{asked.size()};
  for (const examples::named_entry& entry : examples::mask_names) {
    INFO(entry.name);
    examples::device_tables on_device{nullptr};
    examples::host_tables on_host;
    std::vector<answer> answers;
    std::vector<char> behind_function;
    with_mask(entry.name, shape, on_device, [&](const auto& mask, const char*) {
      answer_all<<<questions / 128, 128>>>(mask, there.data(), to.data());
      answers = to.read();
      examples::device_masks keep;
      ask_all<<<questions / 128, 128>>>(keep(mask), there.data(), elements_to.data());
      behind_function = elements_to.read();
    });
    with_mask(entry.name, shape, on_host, [&](const auto& mask, const char*) {
      int wrong_elements = 0, wrong_behind_function = 0, wrong_verdicts = 0;
      for (std::size_t i = 0; i < asked.size(); ++i) {
        const answer expected = answer_of(mask, asked[i]);
        wrong_elements += answers[i].kept != expected.kept;
        wrong_behind_function += behind_function[i] != expected.kept;
        wrong_verdicts +=
            answers[i].verdict != expected.verdict || answers[i].depends != expected.depends;
      }
      CHECK(wrong_elements == 0);
      CHECK(wrong_behind_function == 0);
      CHECK(wrong_verdicts == 0);
    });
  }
}

TEST_CASE("score modifiers: values and derivatives") {
  const auto asked = ask_around();
  const device_array<question> there{asked};
  const device_array<changed> to{asked.size()};
  for (const examples::named_entry& entry : examples::score_names) {
    INFO(entry.name);
    examples::device_tables on_device{nullptr};
    examples::host_tables on_host;
    std::vector<changed> got, behind_function;
    with_score(entry.name, shape, on_device, [&](const auto& score, const char*) {
      change_all<<<questions / 128, 128>>>(score, there.data(), to.data());
      got = to.read();
      examples::device_scores keep;
      change_all<<<questions / 128, 128>>>(keep(score), there.data(), to.data());
      behind_function = to.read();
    });
    with_score(entry.name, shape, on_host, [&](const auto& score, const char*) {
      double worst = 0;
      for (std::size_t i = 0; i < asked.size(); ++i) {
        const changed expected = change(score, asked[i], static_cast<float>(i % 41) - 20);
        const float scale = std::max(1.0f, std::abs(expected.value));
        for (const changed& there : {got[i], behind_function[i]}) {
          worst = std::max<double>(worst, std::abs(there.value - expected.value) / scale);
          worst = std::max<double>(worst, std::abs(there.dual_value - expected.value) / scale);
          worst = std::max<double>(worst, std::abs(there.derivative - expected.derivative));
        }
      }
      CHECK(worst < 1e-5);
    });
  }
}

TEST_CASE("the gradient of a table, added to from all threads") {
  const auto asked = ask_around();
  const device_array<question> there{asked};
  const auto buckets = score::distance_buckets::t5(16, 100, true);
  score::bias_table table{std::vector<float>(3 * 16, 0.25f), 3, 16};
  const score::bias on_host{table.learning(), buckets.view()};
  for (int i = 0; i < questions; ++i) {
    const question& x = asked[static_cast<std::size_t>(i)];
    on_host.add_gradient(1.0f / (1 + i % 7), 0.5f, x.b, x.h, x.q, x.kv);
  }
  examples::device_tables keep{nullptr};
  const device_array<score::exact_sum> sums{3 * 16};
  const score::bias on_device{keep(table).with_gradient(sums.data()), keep(buckets)};
  learn_all<<<questions / 128, 128>>>(on_device, there.data());
  std::vector<double> got;
  for (const score::exact_sum& sum : sums.read()) got.push_back(sum.value());
  CHECK(got == table.gradient()); // to the last bit: exact sums know no order
}
