// SPDX-License-Identifier: Apache-2.0
// Times the building of block maps on the GPU.
// usage: bench_cuda_block_map [--json FILE]

#include "support/device_timer.cuh"
#include "support/report.hpp"

#include <maskring/cuda/block_map.cuh>
#include <maskring/cuda/tables.cuh>
#include <maskring/mask/basic.hpp>
#include <maskring/mask/compose.hpp>
#include <maskring/mask/document.hpp>
#include <maskring/shard/rewrite.hpp>

#include <cstdio>

namespace mr = maskring;

namespace {

// What FlexAttention's mask_mod is: a predicate on ints that cannot be asked about ranges.
struct causal_on_ints {
  constexpr bool operator()(int, int, int q, int kv) const { return q >= kv; }
};

class block_map_bench {
public:
  explicit block_map_bench(bench::report& report) : report_{report} {
    cudaMemPool_t pool;
    int device = 0;
    mr::cuda::detail::require_cuda(cudaGetDevice(&device), "cudaGetDevice");
    mr::cuda::detail::require_cuda(cudaDeviceGetDefaultMemPool(&pool, device), "the memory pool");
    pool_ = pool;
    std::uint64_t keep = ~std::uint64_t{0}; // as frameworks do: no unmapping at each wait
    cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep);
  }

  const bench::device_timer& timer() const { return timer_; }

  template <class Mask>
  void run(const char* name, const Mask& mask, mr::index_t q_len, mr::index_t kv_len,
           mr::tile_shape tile = {}) {
    const mr::map_shape shape{1, 1, q_len, kv_len};
    timer_.wait();
    std::uint64_t before = 0, peak = 0;
    cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrUsedMemCurrent, &before);
    std::uint64_t reset = 0;
    cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrUsedMemHigh, &reset);
    const auto map = mr::cuda::make_block_map(timer_, mask, shape, tile);
    cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrUsedMemHigh, &peak);
    const auto host = map.download(timer_);
    const auto runs =
        static_cast<mr::index_t>(host.rows().runs.size() + host.columns().runs.size());

    const double made =
        timer_.median_wall_ms([&] { (void)mr::cuda::make_block_map(timer_, mask, shape, tile); });
    auto bounded = mr::cuda::make_block_map(timer_, mask, shape, tile, {runs});
    const double rebuilt = timer_.median_ms([&] { bounded.rebuild(timer_, mask); }, 40);
    bounded.check(timer_);
    report_.add(bench::record{}
                    .text("what", "block_map")
                    .text("mask", name)
                    .integer("q_len", q_len)
                    .integer("kv_len", kv_len)
                    .integer("tile_q", tile.q)
                    .integer("tile_kv", tile.kv)
                    .number("ms", made)
                    .number("rebuild_ms", rebuilt)
                    .integer("peak_bytes", static_cast<long long>(peak - before))
                    .integer("runs", runs)
                    .number("sparsity", host.sparsity()));
  }

private:
  bench::report& report_;
  bench::device_timer timer_;
  cudaMemPool_t pool_ = nullptr;
};

void run_all(bench::report& report) {
  block_map_bench b{report};
  constexpr mr::index_t million = 1 << 20, long_one = 131'072;
  const std::vector<int> lengths(million / 1789 + 1, 1789);
  const auto docs = mr::mask::document_table::from_lengths(lengths);
  const mr::cuda::device_table table{b.timer(), docs};
  const mr::shard::zigzag zigzag{million, 8};
  for (const mr::index_t n : {long_one, million}) {
    b.run("causal", mr::mask::causal{}, n, n);
    b.run("window 1024", mr::mask::sliding_window{1024}, n, n);
    b.run("prefix 4096", mr::mask::prefix_lm{4096}, n, n);
    b.run("documents 1789, causal", mr::mask::document{table.view(), mr::mask::causal{}}, n, n);
  }
  b.run("causal, zigzag rank 3 of 8, gathered keys",
        mr::shard::rewrite(mr::mask::causal{}, zigzag.map(3), mr::shard::whole{}), zigzag.size(3),
        million);
  b.run("causal, one query tile", mr::mask::causal{}, 128, million);
  b.run("causal on ints", causal_on_ints{}, long_one / 4, long_one / 4);
  b.run("causal on ints", causal_on_ints{}, long_one, long_one);
  b.run("window 1024 and causal on ints", mr::mask::sliding_window{1024} & causal_on_ints{},
        long_one, long_one);
}

} // namespace

int main(int count, char** arguments) try {
  bench::report report{bench::device_name(), bench::argument(count, arguments, "json", "")};
  run_all(report);
} catch (const std::exception& failure) {
  std::fprintf(stderr, "%s\n", failure.what());
  return 1;
}
