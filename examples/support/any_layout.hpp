// SPDX-License-Identifier: Apache-2.0
// One type for all layouts, for programs that choose theirs at run time.
#pragma once

#include "words.hpp"

#include <maskring/shard/layout.hpp>

namespace examples {

inline constexpr named_entry layout_names[] = {
    {"contiguous", "", "rank r holds tokens [r·n, (r+1)·n)", "contiguous", "shard/layout.hpp"},
    {"zigzag", "", "2·ranks chunks; rank r holds chunks r and 2·ranks − 1 − r", "zigzag",
     "shard/layout.hpp"},
    {"striped", "", "rank r holds tokens r, r + ranks, r + 2·ranks, …", "striped",
     "shard/layout.hpp"},
};

/// global = step·local + head before `split`, step·local + tail from there on: the maps of all
/// three layouts.
struct any_map {
  int split = 0, head = 0, tail = 0, step = 1;

  constexpr int operator()(int local) const { return step * local + (local < split ? head : tail); }
  constexpr maskring::shard::image operator()(maskring::range local) const {
    using namespace maskring;
    if (local.hi < split) return {{local * step + head, {}}, 1};
    if (local.lo >= split) return {{local * step + tail, {}}, 1};
    const shard::image halves = shard::head_tail_map{split, 0, 0}(local);
    return {{halves.pieces[0] * step + head, halves.pieces[1] * step + tail}, 2};
  }
  friend constexpr bool operator==(const any_map&, const any_map&) = default;
};

class any_layout {
public:
  /// @throws std::invalid_argument for an unknown name, a negative sequence or no ranks.
  any_layout(const std::string& name, maskring::index_t sequence, int ranks)
      : kind_{name == "contiguous" ? 0
              : name == "zigzag"   ? 1
                                   : 2},
        contiguous_{sequence, ranks},
        zigzag_{sequence, ranks},
        striped_{sequence, ranks} {
    if (kind_ == 2 && name != "striped") refuse_name("layout", name, layout_names);
  }

  maskring::index_t sequence() const { return contiguous_.sequence(); }
  int ranks() const { return contiguous_.ranks(); }
  maskring::index_t size(int rank) const {
    return kind_ == 0   ? contiguous_.size(rank)
           : kind_ == 1 ? zigzag_.size(rank)
                        : striped_.size(rank);
  }
  any_map map(int rank) const {
    if (kind_ == 0) return {0, 0, contiguous_.map(rank).offset, 1};
    if (kind_ == 2) return {0, 0, striped_.map(rank).first, striped_.map(rank).step};
    const maskring::shard::head_tail_map m = zigzag_.map(rank);
    return {m.split, m.head_offset, m.tail_offset, 1};
  }

private:
  int kind_;
  maskring::shard::contiguous contiguous_;
  maskring::shard::zigzag zigzag_;
  maskring::shard::striped striped_;
};

} // namespace examples
