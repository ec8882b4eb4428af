// SPDX-License-Identifier: Apache-2.0
// Neighbourhoods in a picture, whatever order its pixels are stored in.
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/mask/concepts.hpp>
#include <maskring/mask/detail/boxes.hpp>

#include <concepts>

namespace maskring::mask {

/// Two sizes, along x and y.
struct extent_2d {
  int x = 0, y = 0;
  friend constexpr bool operator==(extent_2d, extent_2d) = default;
};

namespace detail {
constexpr void require_positive(const char* mask, const char* name, extent_2d e) {
  maskring::detail::require(e.x >= 1 && e.y >= 1, mask, ": ", name, " is ", e.x, " x ", e.y,
                            ", expected 1 x 1 or more");
}
} // namespace detail

/// Pixel i is at (i % width, i // width).
class row_order {
public:
  /// @throws std::invalid_argument for a canvas without pixels.
  constexpr explicit row_order(extent_2d canvas) : canvas_{canvas} {
    detail::require_positive("row_order", "canvas", canvas);
  }
  constexpr extent_2d canvas() const { return canvas_; }
  constexpr extent_2d place(int i) const {
    const int y = floor_div(i, canvas_.x);
    return {i - y * canvas_.x, y};
  }
  constexpr detail::boxes<2, 3> boxes(range i) const {
    return detail::split_digits<2>(i, {canvas_.x, canvas_.y});
  }
  friend constexpr bool operator==(row_order, row_order) = default;

private:
  extent_2d canvas_;
};

/// Pixels tile by tile, tiles row by row and row by row within a tile, so that a block of the score
/// matrix holds near pixels.
class tiled_order {
public:
  /// @throws std::invalid_argument unless tiles of that size fill the canvas.
  constexpr tiled_order(extent_2d canvas, extent_2d tile) : canvas_{canvas}, tile_{tile} {
    detail::require_positive("tiled_order", "canvas", canvas);
    detail::require_positive("tiled_order", "tile", tile);
    maskring::detail::require(canvas.x % tile.x == 0 && canvas.y % tile.y == 0,
                              "tiled_order: tile is ", tile.x, " x ", tile.y,
                              ", expected a divisor of the canvas ", canvas.x, " x ", canvas.y);
  }
  constexpr extent_2d canvas() const { return canvas_; }
  constexpr extent_2d place(int i) const {
    const int pixels = tile_.x * tile_.y, tiles = canvas_.x / tile_.x;
    const int tile = floor_div(i, pixels), inner = i - tile * pixels;
    const int row = floor_div(tile, tiles);
    return {(tile - row * tiles) * tile_.x + inner % tile_.x, row * tile_.y + inner / tile_.x};
  }
  constexpr detail::boxes<2, 7> boxes(range i) const {
    detail::boxes<2, 7> out;
    const auto digits =
        detail::split_digits<4>(i, {tile_.x, tile_.y, canvas_.x / tile_.x, canvas_.y / tile_.y});
    for (int n = 0; n < digits.count; ++n) {
      const range(&c)[4] = digits.list[n].at;
      out.push({{c[2] * tile_.x + c[0], c[3] * tile_.y + c[1]}});
    }
    return out;
  }
  friend constexpr bool operator==(tiled_order, tiled_order) = default;

private:
  extent_2d canvas_, tile_;
};

/// Pixels along the Z-curve: x from the even bits of the index, y from the odd ones (G. M. Morton,
/// 1966), on a square canvas whose side is a power of two.
class morton_order {
public:
  /// @throws std::invalid_argument unless side is a power of two up to 2^15.
  constexpr explicit morton_order(int side) : side_{side} {
    maskring::detail::require(side >= 1 && side <= (1 << 15) && (side & (side - 1)) == 0,
                              "morton_order: side is ", side,
                              ", expected a power of two from 1 to 32768");
  }
  constexpr extent_2d canvas() const { return {side_, side_}; }
  constexpr extent_2d place(int i) const {
    const auto bits = static_cast<std::uint32_t>(i);
    return {even_bits(bits), even_bits(bits >> 1)};
  }
  // The binary blocks that an interval of the curve consists of are rectangles.
  constexpr detail::boxes<2, 24> boxes(range i) const {
    detail::boxes<2, 24> out;
    index_t at = i.lo;
    while (at <= i.hi) {
      index_t size = 1;
      int level = 0;
      while (at % (2 * size) == 0 && at + 2 * size - 1 <= i.hi && level < 30) {
        size *= 2;
        ++level;
      }
      if (out.count == 23 && at + size <= i.hi) { // no room for all: one box around the rest
        while (at / size != i.hi / size) {
          size *= 2;
          ++level;
        }
        at = at / size * size;
      }
      const extent_2d corner = place(static_cast<int>(at));
      const index_t x = corner.x, y = corner.y;
      out.push({{range{x, x + (index_t{1} << (level + 1) / 2) - 1, 1, i.depends},
                 range{y, y + (index_t{1} << level / 2) - 1, 1, i.depends}}});
      at += size;
    }
    return out;
  }
  friend constexpr bool operator==(morton_order, morton_order) = default;

private:
  static constexpr int even_bits(std::uint32_t x) {
    x &= 0x55555555u;
    x = (x | x >> 1) & 0x33333333u;
    x = (x | x >> 2) & 0x0f0f0f0fu;
    x = (x | x >> 4) & 0x00ff00ffu;
    return static_cast<int>((x | x >> 8) & 0x0000ffffu);
  }
  int side_;
};

/// |cx − kx| ≤ kernel.x // 2 and |cy − ky| ≤ kernel.y // 2, where (cx, cy) is the query's place
/// moved inwards until the neighbourhood lies on the canvas (A. Hassani et al., Neighborhood
/// Attention, 2022). `Order` says where a token stands on the canvas.
///
/// Exact over ranges without a stride, and with one that divides the width.
template <class Order = row_order>
class neighbourhood {
public:
  /// @throws std::invalid_argument for a kernel that is empty or larger than the canvas.
  constexpr neighbourhood(Order order, extent_2d kernel)
      : order_{order}, reach_{kernel.x / 2, kernel.y / 2} {
    const extent_2d canvas = order.canvas();
    detail::require_positive("neighbourhood", "kernel", kernel);
    maskring::detail::require(kernel.x <= canvas.x && kernel.y <= canvas.y,
                              "neighbourhood: kernel is ", kernel.x, " x ", kernel.y,
                              ", expected at most the canvas ", canvas.x, " x ", canvas.y);
  }

  constexpr bool operator()(int, int, int q, int kv) const {
    const extent_2d from = order_.place(q), to = order_.place(kv);
    return axis(from.x, to.x, reach_.x, order_.canvas().x) &&
           axis(from.y, to.y, reach_.y, order_.canvas().y);
  }

  constexpr kleene operator()(range, range, range q, range kv) const {
    return detail::join_boxes(order_.boxes(q), order_.boxes(kv), detail::joint_depends(q, kv),
                              [this](const auto& from, const auto& to) {
                                const extent_2d canvas = order_.canvas();
                                return axis(from.at[0], to.at[0], reach_.x, canvas.x) &
                                       axis(from.at[1], to.at[1], reach_.y, canvas.y);
                              });
  }
  friend bool operator==(neighbourhood, neighbourhood) = default;

private:
  static constexpr auto axis(auto q, auto kv, int reach, int size) {
    using index = decltype(q);
    return within(clamp(q, index{reach}, index{size - 1 - reach}) - kv, -reach, reach);
  }

  Order order_;
  extent_2d reach_;
};

template <class Order>
neighbourhood(Order, extent_2d) -> neighbourhood<Order>;

} // namespace maskring::mask
