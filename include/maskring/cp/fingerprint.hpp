// SPDX-License-Identifier: Apache-2.0
// Short numbers by which ranks find out that they were given different things.
#pragma once

#include <maskring/cp/shape.hpp>
#include <maskring/mask/concepts.hpp>

#include <cstdint>
#include <typeinfo>

namespace maskring::cp {

/// A running 64-bit hash of integers (the finaliser of splitmix64, G. L. Steele et al., 2014).
class fingerprint {
public:
  constexpr fingerprint& add(std::uint64_t value) {
    state_ += value + 0x9e3779b97f4a7c15u;
    state_ = (state_ ^ (state_ >> 30)) * 0xbf58476d1ce4e5b9u;
    state_ = (state_ ^ (state_ >> 27)) * 0x94d049bb133111ebu;
    state_ ^= state_ >> 31;
    return *this;
  }
  constexpr fingerprint& add_text(const char* text) {
    for (; *text != 0; ++text) add(static_cast<unsigned char>(*text));
    return *this;
  }
  constexpr std::uint64_t value() const { return state_; }

private:
  std::uint64_t state_ = 0;
};

template <class T>
std::uint64_t type_fingerprint() {
  return fingerprint{}.add_text(typeid(T).name()).value();
}

/// Of where a layout puts its tokens: sizes, and the first, last and some positions of each rank.
template <shard::layout Layout>
std::uint64_t layout_fingerprint(const Layout& layout) {
  fingerprint out;
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    const index_t size = layout.size(rank);
    out.add(static_cast<std::uint64_t>(size));
    constexpr index_t samples = 8;
    for (index_t i = 0; size > 0 && i <= samples; ++i) {
      out.add(
          static_cast<std::uint64_t>(layout.map(rank)(static_cast<int>((size - 1) * i / samples))));
    }
  }
  return out.value();
}

namespace detail {

/// Adds what one query sees: the verdicts of a descent over its keys, up to a limit, and single
/// keys near it and spread over the sequence (all there is to ask of a mask without verdicts).
template <mask_mod Mask>
void add_row(fingerprint& out, const Mask& mask, int batch, int head, index_t q, index_t kv_len) {
  const auto seen = [&](index_t kv) {
    return static_cast<bool>(mask(batch, head, static_cast<int>(q), static_cast<int>(kv)));
  };
  range pending[64];
  int depth = 0;
  pending[depth++] = {0, kv_len - 1};
  for (int verdicts = 0; depth > 0 && verdicts < 256; ++verdicts) {
    const range keys = pending[--depth];
    const verdict v = verdict_of(mask, {q, keys, batch, head});
    out.add(static_cast<std::uint64_t>(keys.is_point() ? seen(keys.lo) : static_cast<int>(v) + 2));
    if (v != verdict::some || keys.is_point()) continue;
    const index_t middle = keys.lo + (keys.hi - keys.lo) / 2;
    pending[depth++] = {middle + 1, keys.hi};
    pending[depth++] = {keys.lo, middle};
  }
  for (index_t i = 0; i < 64; ++i) {
    out.add(seen(floor_mod(q + 16 - i, kv_len)));
    out.add(seen((kv_len - 1) * i / 63));
  }
}

} // namespace detail

/// Of what a mask shows to a sample of about a hundred queries: at both ends of the sequence, at
/// growing distances from them, and spread between. Different masks can share a fingerprint; equal
/// masks have equal ones, wherever their tables lie in memory.
template <mask_mod Mask>
std::uint64_t mask_fingerprint(const Mask& mask, const shape& sizes, index_t q_len,
                               index_t kv_len) {
  fingerprint out;
  if (sizes.batch * sizes.q_heads * q_len * kv_len == 0) return out.value();
  index_t sample = 0;
  const auto add = [&](index_t q) {
    detail::add_row(out, mask, static_cast<int>(sample % sizes.batch),
                    static_cast<int>(sample % sizes.q_heads), q, kv_len);
    ++sample;
  };
  for (index_t distance = 1; distance <= q_len; distance *= 2) {
    add(distance - 1);
    add(q_len - distance);
  }
  for (index_t i = 1; i < 64; ++i) add((q_len - 1) * i / 64);
  return out.value();
}

} // namespace maskring::cp
