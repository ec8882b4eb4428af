// SPDX-License-Identifier: Apache-2.0
// Windows over tiles of a picture or a video: every block of the score matrix is full or empty.
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/mask/concepts.hpp>
#include <maskring/mask/detail/boxes.hpp>

namespace maskring::mask {

/// Sliding tile attention (P. Zhang et al., 2025) over tiles along `Axes` axes, the first one
/// fastest.
///
/// Tokens are stored tile by tile, `tile_tokens` each. On every axis with n tiles and a window of
/// w: left = w // 2, right = w // 2 + w % 2 − 1, c = clamp(q_tile, left, n − 1 − right), and the
/// key tiles c − left … c + right are kept. `text` tokens behind the picture are seen by all, and
/// tokens from there on see the picture and the text.
template <int Axes>
class sliding_tile {
public:
  /// @throws std::invalid_argument for sizes < 1, a window larger than the canvas, or text < 0.
  constexpr sliding_tile(const int (&tiles)[Axes], const int (&window)[Axes], int tile_tokens,
                         int text = 0)
      : tile_tokens_{tile_tokens}, text_{text} {
    maskring::detail::require(tile_tokens >= 1, "sliding_tile: tile_tokens is ", tile_tokens,
                              ", expected 1 or more");
    maskring::detail::require(text >= 0, "sliding_tile: text is ", text, ", expected 0 or more");
    index_t tokens = tile_tokens;
    for (int a = 0; a < Axes; ++a) {
      maskring::detail::require(tiles[a] >= 1, "sliding_tile: tiles of axis ", a, " is ", tiles[a],
                                ", expected 1 or more");
      maskring::detail::require(window[a] >= 1 && window[a] <= tiles[a],
                                "sliding_tile: window of axis ", a, " is ", window[a],
                                ", expected 1 to the axis' ", tiles[a], " tiles");
      tiles_[a] = tiles[a];
      window_[a] = window[a];
      tokens *= tiles[a];
      maskring::detail::require(tokens + text < (index_t{1} << 31),
                                "sliding_tile: picture and text "
                                "are ",
                                tokens + text, " tokens or more, expected less than 2^31");
    }
    picture_ = static_cast<int>(tokens);
  }

  /// The tokens of the picture; those of the text follow.
  constexpr int picture() const { return picture_; }

  constexpr bool operator()(int, int, int q, int kv) const {
    if (kv >= picture_ || q >= picture_) return kv < picture_ + text_;
    int q_rest = floor_div(q, tile_tokens_), kv_rest = floor_div(kv, tile_tokens_);
    bool kept = true;
    for (int a = 0; a < Axes; ++a) {
      const bool last = a == Axes - 1;
      const int q_next = floor_div(q_rest, tiles_[a]), kv_next = floor_div(kv_rest, tiles_[a]);
      kept = kept && axis(a, last ? q_rest : q_rest - q_next * tiles_[a],
                          last ? kv_rest : kv_rest - kv_next * tiles_[a]);
      q_rest = q_next;
      kv_rest = kv_next;
    }
    return kept;
  }

  constexpr kleene operator()(range, range, range q, range kv) const {
    const std::uint8_t depends = detail::joint_depends(q, kv);
    const detail::halves queries{q, picture_}, keys{kv, picture_};
    detail::joined seen;
    if (!detail::is_empty(keys.from)) seen.add(keys.from < picture_ + text_);
    if (!detail::is_empty(keys.below)) {
      if (!detail::is_empty(queries.from)) seen.add(true);
      if (!detail::is_empty(queries.below) && !seen.mixed()) {
        const auto pair = [this](const auto& from, const auto& to) {
          kleene kept = true;
          for (int a = 0; a < Axes; ++a) kept = kept & this->axis(a, from.at[a], to.at[a]);
          return kept;
        };
        seen.add(detail::join_boxes(
            detail::split_digits<Axes>(floor_div(queries.below, tile_tokens_), tiles_),
            detail::split_digits<Axes>(floor_div(keys.below, tile_tokens_), tiles_), depends,
            pair));
      }
    }
    return seen.result(depends);
  }
  friend constexpr bool operator==(const sliding_tile&, const sliding_tile&) = default;

private:
  constexpr auto axis(int a, auto q, auto kv) const {
    using index = decltype(q);
    const int left = window_[a] / 2, right = left + window_[a] % 2 - 1;
    return within(kv - clamp(q, index{left}, index{tiles_[a] - 1 - right}), -left, right);
  }

  int tiles_[Axes] = {}, window_[Axes] = {};
  int tile_tokens_ = 1, text_ = 0, picture_ = 0;
};

template <int Axes>
sliding_tile(const int (&)[Axes], const int (&)[Axes], int, int) -> sliding_tile<Axes>;
template <int Axes>
sliding_tile(const int (&)[Axes], const int (&)[Axes], int) -> sliding_tile<Axes>;

} // namespace maskring::mask
