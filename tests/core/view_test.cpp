// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <maskring/core/view.hpp>

using namespace maskring;

namespace {

// The part of std::mdspan's interface that a view reads.
struct fake_mdspan {
  using element_type = float;
  static constexpr std::size_t rank() { return 4; }
  float* pointer;
  float* data_handle() const { return pointer; }
  std::size_t extent(std::size_t d) const { return d + 1; }
  std::size_t stride(std::size_t d) const { return d == 3 ? 1 : 100 >> d; }
};

} // namespace

TEST_CASE("row-major strides, offsets, slices") {
  float memory[120] = {};
  const view<float, 4> a{memory, {2, 3, 4, 5}};
  CHECK(a.stride(0) == 60);
  CHECK(a.stride(3) == 1);
  CHECK(a.size() == 120);
  CHECK(&a(1, 2, 3, 4) == memory + 119);
  const view<const float, 4> part = a.slice(2, 1, 2);
  CHECK(part.extent(2) == 2);
  CHECK(&part(0, 0, 0, 0) == memory + 5);
}

TEST_CASE("an mdspan passes as a view") {
  float memory[1] = {};
  const view a{fake_mdspan{memory}};
  static_assert(std::is_same_v<decltype(a), const view<float, 4>>);
  CHECK(a.extent(2) == 3);
  CHECK(a.stride(1) == 50);
  CHECK(a.data_handle() == memory);
}

TEST_CASE("offsets beyond 2^31 elements do not wrap") {
  const view<const float, 4> large{nullptr, {4, 64, 1 << 20, 128}};
  CHECK(large.offset(3, 63, (1 << 20) - 1, 127) == index_t{4} * 64 * (1 << 20) * 128 - 1);
}
