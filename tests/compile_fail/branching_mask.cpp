// SPDX-License-Identifier: Apache-2.0
// A mask that branches on a comparison of ranges is told what to write instead.
// expect: maskring: this mask or score modifier branches
// expect: maskring::mask::elementwise
#include <maskring/mask/basic.hpp>
#include <maskring/mask/compose.hpp>

using namespace maskring;

struct near_diagonal {
  constexpr bool operator()(auto, auto, auto q, auto kv) const {
    if (q < kv) return false;
    return q - kv <= 8;
  }
};

#ifdef VALID
constexpr mask::elementwise<near_diagonal> asked{near_diagonal{}};
#else
constexpr near_diagonal asked{};
#endif

static_assert(verdict_of(asked, tile{.q = {0, 7}, .kv = {0, 7}}) != verdict::all);
