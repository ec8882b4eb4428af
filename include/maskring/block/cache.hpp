// SPDX-License-Identifier: Apache-2.0
// Block maps that are built once and asked for often.
#pragma once

#include <maskring/block/build.hpp>

#include <concepts>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>

namespace maskring {

/// Remembers the block maps of one type of mask by mask value, shape and tile; safe to share
/// between threads. The counterpart of create_block_mask_cached.
///
/// Masks are compared with ==, or byte by byte where they have none. A mask that reads memory is
/// compared by its pointers unless its == knows better (maskring's own tables carry a serial
/// number): clear() after changing what they point to.
template <mask_mod Mask>
class block_map_cache {
public:
  /// Keeps at most `capacity` maps and forgets the oldest first.
  explicit block_map_cache(std::size_t capacity = 64) : capacity_{capacity} {}

  /// The same object for the same request, as long as it is remembered; it outlives the cache while
  /// the caller holds it.
  std::shared_ptr<const block_map> get(const Mask& mask, const map_shape& shape,
                                       tile_shape tile = {}) {
    const std::lock_guard lock{mutex_};
    for (const entry& e : entries_) {
      if (e.shape == shape && e.tile == tile && same(e.mask, mask)) return e.map;
    }
    auto map = std::make_shared<const block_map>(make_block_map(mask, shape, tile));
    if (entries_.size() == capacity_) entries_.pop_front();
    if (capacity_ > 0) entries_.push_back({mask, shape, tile, map});
    return map;
  }

  void clear() {
    const std::lock_guard lock{mutex_};
    entries_.clear();
  }

private:
  struct entry {
    Mask mask;
    map_shape shape;
    tile_shape tile;
    std::shared_ptr<const block_map> map;
  };

  static bool same(const Mask& a, const Mask& b) {
    if constexpr (std::equality_comparable<Mask>) {
      return static_cast<bool>(a == b);
    } else if constexpr (std::is_empty_v<Mask>) {
      return true;
    } else {
      return std::memcmp(&a, &b, sizeof(Mask)) == 0;
    }
  }

  std::mutex mutex_;
  std::size_t capacity_;
  std::deque<entry> entries_;
};

/// The cache of this type of mask for the whole program.
template <mask_mod Mask>
block_map_cache<Mask>& global_block_map_cache() {
  static block_map_cache<Mask> cache;
  return cache;
}

/// make_block_map, but a second request for the same thing returns the same object.
template <mask_mod Mask>
std::shared_ptr<const block_map> make_block_map_cached(const Mask& mask, const map_shape& shape,
                                                       tile_shape tile = {}) {
  return global_block_map_cache<Mask>().get(mask, shape, tile);
}

} // namespace maskring
