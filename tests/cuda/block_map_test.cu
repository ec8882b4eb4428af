// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <maskring/block/build.hpp>
#include <maskring/cuda/block_map.cuh>
#include <maskring/cuda/tables.cuh>
#include <maskring/mask/basic.hpp>
#include <maskring/mask/batched.hpp>
#include <maskring/mask/block_diffusion.hpp>
#include <maskring/mask/compose.hpp>
#include <maskring/mask/document.hpp>
#include <maskring/mask/lengths.hpp>
#include <maskring/mask/window.hpp>
#include <maskring/shard/rewrite.hpp>

#include <cstring>
#include <vector>

using namespace maskring;

namespace {

class on_stream {
public:
  on_stream() {
    maskring::cuda::detail::require_cuda(cudaStreamCreate(&stream_), "cudaStreamCreate");
  }
  ~on_stream() { cudaStreamDestroy(stream_); }
  cudaStream_t stream() const { return stream_; }

private:
  cudaStream_t stream_ = nullptr;
};

struct scattered { // no structure, different for every head
  constexpr bool operator()(int b, int h, int q, int kv) const {
    return ((q / 5) * 31 + (kv / 7) * 17 + h * 13 + b * 7) % 5 == 0;
  }
};
struct branching_causal {
  constexpr bool operator()(int, int, int q, int kv) const {
    if (q < kv) return false;
    return true;
  }
};
struct per_head_window {
  constexpr auto operator()(auto, auto h, auto q, auto kv) const {
    return within(q - kv, 0, h * 10);
  }
};
struct checkered { // every tile of 16 x 16 differs from its neighbours: as many runs as tiles
  constexpr auto operator()(auto, auto, auto q, auto kv) const {
    return floor_mod(floor_div(q, 16) + floor_div(kv, 16), 2) == 0;
  }
};

struct contradictory { // sound, but a small rectangle is answered worse than a large one
  constexpr bool operator()(int, int, int q, int kv) const { return q >= kv; }
  constexpr kleene operator()(range, range, range q, range kv) const {
    const kleene exact = q >= kv;
    return kv.hi - kv.lo < 16 ? kleene{verdict::some, exact.depends()} : exact;
  }
};

template <class Csr>
void check_same(const Csr& found, const Csr& expected) {
  REQUIRE(found.offsets == expected.offsets);
  CHECK(found.runs == expected.runs);
}

void check_same(const block_map& found, const block_map& expected) {
  CHECK(found.view().batch == expected.view().batch);
  CHECK(found.view().heads == expected.view().heads);
  CHECK(found.view().q_len == expected.view().q_len);
  CHECK(found.view().kv_len == expected.view().kv_len);
  CHECK(found.view().tile == expected.view().tile);
  check_same(found.rows(), expected.rows());
  check_same(found.columns(), expected.columns());
}

// Every layer's query tiles once each, those with most to do first and equal ones last to first.
void check_longest(const on_stream& exec, const maskring::cuda::block_map& map,
                   const block_map& expected) {
  const block_map_view& sizes = expected.view();
  const auto q_tiles = static_cast<std::size_t>(sizes.q_tiles());
  std::vector<std::int32_t> order(expected.rows().offsets.size() - 1);
  cudaStreamSynchronize(exec.stream());
  REQUIRE(cudaMemcpy(order.data(), map.view().longest, order.size() * sizeof(std::int32_t),
                     cudaMemcpyDeviceToHost) == cudaSuccess);
  for (std::size_t layer = 0; layer < order.size() / q_tiles; ++layer) {
    std::vector<bool> seen(q_tiles);
    std::pair before{sizes.kv_tiles(), sizes.q_tiles()};
    for (std::size_t rank = 0; rank < q_tiles; ++rank) {
      const auto tile = static_cast<std::size_t>(order[layer * q_tiles + rank]);
      REQUIRE(tile < q_tiles);
      REQUIRE(!seen[tile]);
      seen[tile] = true;
      std::pair here{0, static_cast<int>(tile)};
      const auto row = static_cast<index_t>(layer * q_tiles + tile);
      for (const tile_run* run = sizes.rows.begin(row); run != sizes.rows.end(row); ++run) {
        here.first += run->count();
      }
      CHECK(here < before);
      before = here;
    }
  }
}

// The map built on the device against the host's, run for run. Two masks, because tables are read
// from the memory of the side that builds.
template <class Mask>
void check_build(const Mask& on_device, const Mask& on_host, const map_shape& shape,
                 tile_shape tile) {
  INFO(shape.batch << " x " << shape.heads << " x " << shape.q_len << " x " << shape.kv_len
                   << ", tile " << tile.q << " x " << tile.kv);
  const on_stream exec;
  const block_map expected = make_block_map(on_host, shape, tile);
  const maskring::cuda::block_map built =
      maskring::cuda::make_block_map(exec, on_device, shape, tile);
  check_same(built.download(exec), expected);

  const auto runs =
      static_cast<index_t>(expected.rows().runs.size() + expected.columns().runs.size());
  const maskring::cuda::run_bound bound{runs, expected.view().batch > 1, expected.view().heads > 1};
  const maskring::cuda::block_map bounded =
      maskring::cuda::make_block_map(exec, on_device, shape, tile, bound);
  bounded.check(exec);
  check_same(bounded.download(exec), expected);
  if (shape.batch * shape.heads * shape.q_len * shape.kv_len == 0) return;
  check_longest(exec, built, expected);
  check_longest(exec, bounded, expected);
}

template <class Mask>
void check_build(const Mask& mask, const map_shape& shape, tile_shape tile) {
  check_build(mask, mask, shape, tile);
}

// One partial run a line: right for every mask.
void check_dense(const block_map& map) {
  for (const auto* side : {&map.rows(), &map.columns()}) {
    for (std::size_t line = 0; line + 1 < side->offsets.size(); ++line) {
      REQUIRE(side->offsets[line + 1] == static_cast<int>(line) + 1);
      const int across = side == &map.rows() ? map.view().kv_tiles() : map.view().q_tiles();
      CHECK(side->runs[line] == tile_run{0, across, true});
    }
  }
}

const tile_shape tiles[] = {{16, 16}, {8, 32}, {64, 24}, {48, 16, true}};
const index_t lengths[] = {1, 64, 217};

} // namespace

TEST_CASE("device block maps equal the host's") {
  for (const tile_shape tile : tiles) {
    for (const index_t q_len : lengths) {
      for (const index_t kv_len : {index_t{1}, index_t{96}, index_t{217}}) {
        const map_shape shape{1, 1, q_len, kv_len};
        check_build(mask::full{}, shape, tile);
        check_build(mask::causal{}, shape, tile);
        check_build(!mask::causal{}, shape, tile);
        check_build(mask::sliding_window{20}, shape, tile);
        check_build(mask::sliding_window{20} | mask::prefix_lm{37}, shape, tile);
        check_build(mask::attention_sink{30, 4}, shape, tile);
        check_build(mask::dilated_window{50, 16}, shape, tile);
        check_build(mask::batched{mask::causal{}, 50}, shape, tile);
        check_build(mask::block_diffusion{110, 16}, shape, tile);
        check_build(checkered{}, shape, tile);
      }
    }
  }
}

TEST_CASE("device block maps of masks that are looked at element by element") {
  for (const tile_shape tile : tiles) {
    for (const index_t q_len : lengths) {
      for (const index_t kv_len : {index_t{1}, index_t{96}, index_t{1217}}) {
        const map_shape shape{1, 1, q_len, kv_len};
        check_build(scattered{}, shape, tile);
        check_build(branching_causal{}, shape, tile);
        check_build(mask::causal{} & scattered{}, shape, tile);
        check_build(mask::elementwise{mask::sliding_window{20}}, shape, tile);
      }
    }
  }
  check_build(branching_causal{}, {1, 1, 3001, 5003}, {128, 128});
}

TEST_CASE("device block maps have the layers that the mask needs") {
  const map_shape shape{2, 3, 70, 90};
  check_build(scattered{}, shape, {16, 16});
  check_build(per_head_window{}, shape, {16, 16});
  check_build(mask::causal{}, shape, {16, 16});
  check_build(mask::uniform{scattered{}}, shape, {16, 16});
  check_build(mask::causal{} & scattered{}, shape, {16, 16});
}

TEST_CASE("device block maps of masks that read tables") {
  const on_stream exec;
  const auto docs =
      mask::document_table::from_lengths(std::vector<int>{30, 1, 0, 64, 100, 22, 300});
  const maskring::cuda::device_table device_docs{exec, docs};
  const mask::int_table lengths_of_batch{std::vector<int>{100, 3, 217}, 3};
  const maskring::cuda::device_table device_lengths{exec, lengths_of_batch};
  std::vector<int> flags(600);
  for (const std::size_t i : {3u, 150u, 151u, 152u, 400u}) flags[i] = 1;
  const mask::int_table marked{flags, 600};
  const maskring::cuda::device_table device_marked{exec, marked};
  cudaStreamSynchronize(exec.stream());
  for (const tile_shape tile : tiles) {
    for (const index_t length : {index_t{1}, index_t{217}, index_t{517}}) {
      const map_shape shape{3, 2, length, length};
      check_build(mask::document{device_docs.view(), mask::causal{}},
                  mask::document{docs.view(), mask::causal{}}, shape, tile);
      check_build(mask::document{device_docs.view()}, mask::document{docs.view()}, shape, tile);
      check_build(mask::key_padding{device_lengths.view()},
                  mask::key_padding{lengths_of_batch.view()}, shape, tile);
      check_build(mask::global_window{20, device_marked.view()},
                  mask::global_window{20, marked.view()}, shape, tile);
    }
  }
}

TEST_CASE("device block maps of the context-parallel rewrite") {
  const on_stream exec;
  const auto docs = mask::document_table::from_lengths(std::vector<int>{300, 77, 500, 123});
  const maskring::cuda::device_table device_docs{exec, docs};
  cudaStreamSynchronize(exec.stream());
  const auto check_layout = [&](const auto& layout) {
    for (int rank = 0; rank < layout.ranks(); ++rank) {
      for (int other = 0; other < layout.ranks(); ++other) {
        const map_shape shape{1, 1, layout.size(rank), layout.size(other)};
        const auto rewritten = [&](const auto& mask) {
          return shard::rewrite(mask, layout.map(rank), layout.map(other));
        };
        check_build(rewritten(mask::causal{}), shape, {16, 32});
        check_build(rewritten(mask::sliding_window{60}), shape, {16, 32});
        check_build(rewritten(mask::document{device_docs.view(), mask::causal{}}),
                    rewritten(mask::document{docs.view(), mask::causal{}}), shape, {16, 32});
      }
    }
  };
  check_layout(shard::contiguous{1000, 3});
  check_layout(shard::zigzag{1000, 3});
  check_layout(shard::striped{1000, 3});
}

TEST_CASE("long lines are split between threads and their seams do not show") {
  check_build(mask::causal{}, {1, 1, 1, 1 << 20}, {16, 16});
  check_build(mask::full{}, {1, 1, 100, 1 << 20}, {16, 16});
  check_build(mask::sliding_window{3000}, {1, 1, 1 << 20, 64}, {16, 16});
  check_build(checkered{}, {1, 1, 33, 100'001}, {16, 16});
  check_build(checkered{}, {1, 1, 33, 100'001}, {24, 16});
  check_build(mask::dilated_window{1 << 19, 48}, {1, 1, 40, 1 << 20}, {16, 16});
  check_build(mask::elementwise{mask::full{}}, {1, 1, 40, 20'000}, {16, 16});
  check_build(mask::prefix_lm{5000}, {1, 1, 1 << 20, 1 << 20}, {128, 128});
}

TEST_CASE("empty sequences have empty device block maps") {
  for (const map_shape& shape : {map_shape{1, 1, 0, 10}, map_shape{1, 1, 10, 0},
                                 map_shape{0, 0, 10, 10}, map_shape{2, 0, 0, 0}}) {
    check_build(mask::causal{}, shape, {16, 16});
    check_build(scattered{}, shape, {16, 16});
  }
}

TEST_CASE("a bound that does not suffice gives a map that is right, and is reported") {
  const on_stream exec;
  const map_shape shape{1, 2, 500, 700};
  maskring::cuda::block_map map =
      maskring::cuda::make_block_map(exec, checkered{}, shape, {16, 16}, {150});
  CHECK_THROWS_AS(map.check(exec), std::length_error);
  check_dense(map.download(exec));
  map.rebuild(exec, mask::causal{});
  map.check(exec);
  check_same(map.download(exec), make_block_map(mask::causal{}, shape, {16, 16}));

  map.rebuild(exec, per_head_window{}); // the map has one layer for all heads
  CHECK_THROWS_AS(map.check(exec), std::invalid_argument);
  check_dense(map.download(exec));
  CHECK_THROWS_AS(map.rebuild(exec, scattered{}), std::invalid_argument);
  CHECK_THROWS_AS(maskring::cuda::make_block_map(exec, mask::causal{}, shape, {16, 16})
                      .rebuild(exec, mask::causal{}),
                  std::invalid_argument);
}

TEST_CASE("rows and columns never contradict each other, whatever the mask answers") {
  const on_stream exec;
  const map_shape shape{1, 1, 500, 700};
  maskring::cuda::block_map map =
      maskring::cuda::make_block_map(exec, contradictory{}, shape, {16, 16}, {1000});
  CHECK(contradictory{}(0, 0, 1, 1));
  CHECK_THROWS_AS(map.check(exec), std::invalid_argument);
  check_dense(map.download(exec));
  CHECK_THROWS_AS(maskring::cuda::make_block_map(exec, contradictory{}, shape, {16, 16}),
                  std::invalid_argument);
}

TEST_CASE("a rebuild is captured in a CUDA graph and follows its tables") {
  const on_stream exec;
  const map_shape shape{1, 1, 600, 600};
  const auto first = mask::document_table::from_lengths(std::vector<int>{300, 300});
  const auto second = mask::document_table::from_lengths(std::vector<int>{100, 500});
  const maskring::cuda::device_table table{exec, first};
  const mask::document mask{table.view(), mask::causal{}};
  maskring::cuda::block_map map =
      maskring::cuda::make_block_map(exec, mask, shape, {16, 16}, {400});
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  REQUIRE(cudaStreamBeginCapture(exec.stream(), cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  map.rebuild(exec, mask);
  REQUIRE(cudaStreamEndCapture(exec.stream(), &graph) == cudaSuccess);
  REQUIRE(cudaGraphInstantiate(&replay, graph, 0) == cudaSuccess);
  for (const auto* docs : {&second, &first}) {
    cudaMemcpyAsync(const_cast<int*>(table.view().ids), docs->memory().data(),
                    docs->memory().size_bytes(), cudaMemcpyHostToDevice, exec.stream());
    REQUIRE(cudaGraphLaunch(replay, exec.stream()) == cudaSuccess);
    map.check(exec);
    check_same(map.download(exec),
               make_block_map(mask::document{docs->view(), mask::causal{}}, shape, {16, 16}));
  }
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
}

TEST_CASE("block maps go to the device and back") {
  const on_stream exec;
  for (const map_shape& shape : {map_shape{2, 3, 300, 500}, map_shape{1, 1, 0, 500}}) {
    const block_map map = make_block_map(scattered{}, shape, {16, 16});
    check_same(maskring::cuda::upload(exec, map).download(exec), map);
  }
}

TEST_CASE("sizes that make no map are refused, as on the host") {
  const on_stream exec;
  CHECK_THROWS_AS(maskring::cuda::make_block_map(exec, mask::full{}, {1, 1, -1, 4}),
                  std::invalid_argument);
  CHECK_THROWS_AS(maskring::cuda::make_block_map(exec, mask::full{}, {1, 1, 4, 4}, {0, 4}),
                  std::invalid_argument);
}
