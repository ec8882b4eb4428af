// SPDX-License-Identifier: Apache-2.0
// A functor without the batch argument is no mask.
// expect: mask_mod
#include <maskring/mask/basic.hpp>

using namespace maskring;

struct forgetful {
#ifdef VALID
  constexpr auto operator()(auto, auto, auto q, auto kv) const { return q >= kv; }
#else
  constexpr auto operator()(auto, auto q, auto kv) const { return q >= kv; }
#endif
};

static_assert(verdict_of(forgetful{}, tile{.q = {0, 7}, .kv = {8, 9}}) == verdict::none);
