// SPDX-License-Identifier: Apache-2.0
// Times attention on the host, forward and backward; medians over repeated calls.
// usage: bench_host_attention [--json FILE] [--threads N] [--repeat N] [--only CASE] [--list yes]

#include "support/report.hpp"

#include <maskring/cpu/host.hpp>
#include <maskring/mask/basic.hpp>
#include <maskring/mask/compose.hpp>
#include <maskring/mask/document.hpp>
#include <maskring/score/softcap.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <random>
#include <vector>

namespace {

namespace mr = maskring;

struct attention_size {
  mr::index_t batch, heads, kv_heads, seq, dim;
};

const char* name_of(float) { return "float"; }
const char* name_of(mr::bfloat16) { return "bfloat16"; }
const char* name_of(mr::float16) { return "half"; }

/// Unit-normal numbers in memory of a tensor [batch, heads, seq, dim].
template <class T>
class tensor {
public:
  tensor(mr::index_t batch, mr::index_t heads, mr::index_t seq, mr::index_t dim)
      : shape_{batch, heads, seq, dim}, data_(static_cast<std::size_t>(batch * heads * seq * dim)) {
    std::mt19937 random{1};
    std::normal_distribution<float> normal;
    for (T& x : data_) x = T(normal(random));
  }
  mr::view<T, 4> operator*() { return {data_.data(), shape_}; }

private:
  mr::index_t shape_[4];
  std::vector<T> data_;
};

template <class Work>
double median_ms(int repeat, const Work& work) {
  using clock = std::chrono::steady_clock;
  std::vector<double> times;
  for (int i = 0; i <= repeat; ++i) {
    const auto start = clock::now();
    work();
    times.push_back(std::chrono::duration<double, std::milli>(clock::now() - start).count());
  }
  times.erase(times.begin()); // touched the memory first
  std::nth_element(times.begin(), times.begin() + repeat / 2, times.end());
  return times[static_cast<std::size_t>(repeat / 2)];
}

/// Pairs of a query and a key that the mask keeps in one head.
template <class Mask>
double kept_pairs(const Mask& mask, mr::index_t seq) {
  const mr::tile_shape tile{64, 64};
  const mr::block_map map = mr::make_block_map(mask, {1, 1, seq, seq}, tile);
  double pairs = 0;
  for (mr::index_t i = 0; i < map.view().q_tiles(); ++i) {
    const auto* end = map.view().rows.end(i);
    for (const auto* run = map.view().rows.begin(i); run != end; ++run) {
      for (mr::index_t q = i * tile.q; q < std::min(seq, (i + 1) * tile.q); ++q) {
        const mr::index_t first = mr::index_t{run->first} * tile.kv;
        const mr::index_t last = std::min(seq, mr::index_t{run->end()} * tile.kv);
        for (mr::index_t k = first; k < last; ++k) {
          pairs += !run->partial() || mask(0, 0, static_cast<int>(q), static_cast<int>(k)) ? 1 : 0;
        }
      }
    }
  }
  return pairs;
}

class host_bench {
public:
  host_bench(bench::report& report, int threads, int repeat, std::string only, bool list)
      : report_{report}, executor_{threads}, repeat_{repeat}, only_{std::move(only)}, list_{list} {}

  template <class T, class Mask, class Score = mr::score::none>
  void run(const std::string& name, const char* mask_name, const Mask& mask,
           const attention_size& size, const char* score_name = "none", const Score& score = {}) {
    if (list_) {
      std::printf("%s\n", name.c_str());
      return;
    }
    if (!only_.empty() && only_ != name) return;
    const auto [batch, heads, kv_heads, seq, dim] = size;
    tensor<T> q{batch, heads, seq, dim}, k{batch, kv_heads, seq, dim}, v = k;
    tensor<T> out = q, dout = q, dq = q, dk = k, dv = k;
    std::vector<float> sums(static_cast<std::size_t>(batch * heads * seq));
    const mr::view lse{sums.data(), {batch, heads, seq}};
    const double flops = 4.0 * static_cast<double>(batch * heads * dim) * kept_pairs(mask, seq);
    const auto add = [&](const char* what, double work, double ms) {
      report_.add(bench::record{}
                      .text("case", name)
                      .text("what", what)
                      .text("mask", mask_name)
                      .text("score", score_name)
                      .text("type", name_of(T{}))
                      .integer("batch", batch)
                      .integer("heads", heads)
                      .integer("kv_heads", kv_heads)
                      .integer("seq", seq)
                      .integer("dim", dim)
                      .number("ms", ms)
                      .number("gflops", work / ms / 1e6));
    };
    add("forward", flops, median_ms(repeat_, [&] {
          mr::forward(executor_, mr::inputs{*q, *k, *v}, mr::results{*out, lse}, mask, score);
        }));
    add("backward", 2.5 * flops, median_ms(repeat_, [&] {
          mr::backward(executor_, mr::saved{*q, *k, *v, *out, lse}, mr::upstream{*dout},
                       mr::gradients{*dq, *dk, *dv}, mask, score);
        }));
  }

private:
  bench::report& report_;
  mr::host executor_;
  int repeat_;
  std::string only_;
  bool list_;
};

void run_all(host_bench& b) {
  b.run<float>("causal-32", "causal", mr::mask::causal{}, {1, 8, 8, 4096, 32});
  b.run<float>("causal-64", "causal", mr::mask::causal{}, {1, 8, 8, 4096, 64});
  b.run<float>("causal-128", "causal", mr::mask::causal{}, {1, 8, 8, 4096, 128});
  b.run<float>("full-64", "full", mr::mask::full{}, {1, 8, 8, 2048, 64});
  b.run<float>("grouped-64", "causal", mr::mask::causal{}, {1, 8, 2, 4096, 64});
  b.run<float>("short-64", "causal", mr::mask::causal{}, {16, 8, 8, 256, 64});
  b.run<mr::bfloat16>("bfloat16-64", "causal", mr::mask::causal{}, {1, 8, 8, 4096, 64});
  b.run<mr::float16>("half-64", "causal", mr::mask::causal{}, {1, 8, 8, 4096, 64});
  b.run<float>("window-64", "window 512", mr::mask::sliding_window{512}, {1, 8, 8, 8192, 64});
  b.run<float>("softcap-64", "causal", mr::mask::causal{}, {1, 8, 8, 2048, 64}, "softcap 30",
               mr::score::softcap{30});
  const std::vector<int> lengths(8, 500);
  const auto documents = mr::mask::document_table::from_lengths(lengths);
  b.run<float>("documents-64", "documents 500",
               mr::mask::document{documents.view(), mr::mask::causal{}}, {1, 8, 8, 4000, 64});
}

} // namespace

int main(int count, char** arguments) try {
  const auto argument = [&](const char* name, const char* otherwise) {
    return bench::argument(count, arguments, name, otherwise);
  };
  bench::report report{"cpu", argument("json", "")};
  host_bench b{report, std::atoi(argument("threads", "0").c_str()),
               std::max(1, std::atoi(argument("repeat", "7").c_str())), argument("only", ""),
               argument("list", "no") == "yes"};
  run_all(b);
} catch (const std::exception& failure) {
  std::fprintf(stderr, "%s\n", failure.what());
  return 1;
}
