// SPDX-License-Identifier: Apache-2.0
// Biases from tables under the Hopper kernel, which has shapes of its own for them.
#include "attention.cuh"

#include <maskring/score/bias.hpp>

#include <cstring>

namespace maskring::testing {
namespace {

/// A copy that host and device read at one address.
template <class T>
class everywhere {
public:
  explicit everywhere(std::span<const T> values) {
    REQUIRE(cudaMallocHost(&data_, values.size_bytes()) == cudaSuccess);
    std::memcpy(data_, values.data(), values.size_bytes());
  }
  ~everywhere() { cudaFreeHost(data_); }
  everywhere(const everywhere&) = delete;
  everywhere& operator=(const everywhere&) = delete;
  const T* data() const { return static_cast<const T*>(data_); }

private:
  void* data_ = nullptr;
};

template <int Dim>
void check_bias() {
  if (!is_hopper()) return;
  constexpr int heads = 4, count = 32;
  std::mt19937_64 random{Dim};
  std::vector<float> values;
  for (int i = 0; i < heads * count; ++i) {
    values.push_back(std::normal_distribution<float>{}(random));
  }
  const auto distances = score::distance_buckets::t5(count, 128, false);
  const score::bias_table table{values, heads, count};
  const everywhere<int> buckets{distances.memory()};
  const everywhere<float> biases{table.memory()};
  const score::bias bias{table.view_at(biases.data()), distances.view_at(buckets.data())};

  cuda::workspace scratch;
  const auto exec = cuda::on(nullptr, scratch, cuda::unpacked(cuda::head_dims<Dim>))
                        .with({.kernel = cuda::kernel::hopper});
  attention_case c{.batch = 2, .q_heads = heads, .kv_heads = 2, .qk_dim = Dim, .v_dim = Dim};
  const auto best = cuda::forward_tile<mask::causal, decltype(bias)>(exec, Dim, Dim);
  const auto plain = cuda::forward_tile<mask::causal>(exec, Dim, Dim);
  for (const tile_shape tile : {tile_shape{.q = 0, .kv = 0}, best, plain}) {
    c.tile = tile;
    for (const int q_len : {421, 130}) {
      c.q_len = q_len;
      c.kv_len = 397;
      compare_with<bfloat16, false>(exec, c, mask::causal{}, bias);
    }
  }
}

} // namespace

TEST_CASE("biases from tables on Hopper, head dimension 64") { check_bias<64>(); }
TEST_CASE("biases from tables on Hopper, head dimension 96") { check_bias<96>(); }
TEST_CASE("biases from tables on Hopper, head dimension 128") { check_bias<128>(); }
TEST_CASE("biases from tables on Hopper, head dimension 256") { check_bias<256>(); }

} // namespace maskring::testing
