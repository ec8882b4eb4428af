// SPDX-License-Identifier: Apache-2.0
// The two kinds of attention heads that video models turn out to have.
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/mask/concepts.hpp>
#include <maskring/mask/detail/boxes.hpp>

namespace maskring::mask {

namespace detail {
/// ⌊width · frame_tokens / divisor⌋ · unit, after the checks that both heads share.
constexpr int video_reach(const char* mask, int prompt, double width, int frame_tokens,
                          const char* divisor_name, int divisor, int unit) {
  maskring::detail::require(prompt >= 0, mask, ": prompt is ", prompt, ", expected 0 or more");
  maskring::detail::require(frame_tokens >= 1, mask, ": frame_tokens is ", frame_tokens,
                            ", expected 1 or more");
  maskring::detail::require(divisor >= 1, mask, ": ", divisor_name, " is ", divisor,
                            ", expected 1 or more");
  const double tokens = width * frame_tokens;
  maskring::detail::require(width >= 0 && tokens < 0x1p31, mask, ": width is ", width,
                            ", expected 0 or more frames and less than 2^31 tokens");
  return static_cast<int>(tokens / divisor) * unit; // not negative, so this rounds down
}
} // namespace detail

/// kv < prompt or q < prompt or |q − kv| < reach, where reach is `width` frames of `frame_tokens`
/// tokens rounded down to a multiple of `round`: heads that look at near frames (H. Xi et al.,
/// Sparse VideoGen, 2025).
class spatial_head {
public:
  /// @throws std::invalid_argument for a negative prompt or width, or sizes < 1.
  constexpr spatial_head(int prompt, double width, int frame_tokens, int round = 1)
      : prompt_{prompt},
        reach_{detail::video_reach("spatial_head", prompt, width, frame_tokens, "round", round,
                                   round)} {}
  constexpr bool operator()(int, int, int q, int kv) const {
    return kv < prompt_ || q < prompt_ || (q - kv < reach_ && kv - q < reach_);
  }
  constexpr kleene operator()(range, range, range q, range kv) const {
    const detail::halves queries{q, prompt_}, keys{kv, prompt_};
    detail::joined seen;
    if (!detail::is_empty(queries.below) || !detail::is_empty(keys.below)) seen.add(true);
    if (!detail::is_empty(queries.from) && !detail::is_empty(keys.from)) {
      seen.add(within(queries.from - keys.from, 1 - reach_, reach_ - 1));
    }
    return seen.result(detail::joint_depends(q, kv));
  }
  friend constexpr bool operator==(spatial_head, spatial_head) = default;

private:
  int prompt_, reach_;
};

/// kv < prompt or q < prompt or |(q − prompt) % frame_tokens − (kv − prompt) % frame_tokens| <
/// reach, where reach = ⌊width · frame_tokens / frames⌋: heads that look at one place in all frames
/// (H. Xi et al., Sparse VideoGen, 2025).
class temporal_head {
public:
  /// @throws std::invalid_argument for a negative prompt or width, or sizes < 1.
  constexpr temporal_head(int prompt, double width, int frame_tokens, int frames)
      : prompt_{prompt},
        frame_tokens_{frame_tokens},
        reach_{detail::video_reach("temporal_head", prompt, width, frame_tokens, "frames", frames,
                                   1)} {}
  constexpr bool operator()(int, int, int q, int kv) const {
    if (kv < prompt_ || q < prompt_) return true;
    const int distance = (q - prompt_) % frame_tokens_ - (kv - prompt_) % frame_tokens_;
    return distance < reach_ && -distance < reach_;
  }
  constexpr kleene operator()(range, range, range q, range kv) const {
    const std::uint8_t depends = detail::joint_depends(q, kv);
    const detail::halves queries{q, prompt_}, keys{kv, prompt_};
    detail::joined seen;
    if (!detail::is_empty(queries.below) || !detail::is_empty(keys.below)) seen.add(true);
    if (!detail::is_empty(queries.from) && !detail::is_empty(keys.from)) {
      seen.add(detail::join_boxes(places(queries.from), places(keys.from), depends,
                                  [this](const auto& a, const auto& b) {
                                    return within(a.at[0] - b.at[0], 1 - reach_, reach_ - 1);
                                  }));
    }
    return seen.result(depends);
  }
  friend constexpr bool operator==(temporal_head, temporal_head) = default;

private:
  constexpr detail::boxes<2, 3> places(range i) const {
    return detail::split_digits<2>(i - prompt_, {frame_tokens_, 1});
  }

  int prompt_, frame_tokens_, reach_;
};

} // namespace maskring::mask
