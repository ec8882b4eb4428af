// SPDX-License-Identifier: Apache-2.0
// A functor that returns nothing is no mask.
// expect: mask_mod|constraints not satisfied
#include <maskring/mask/basic.hpp>
#include <maskring/mask/compose.hpp>

using namespace maskring;

struct silent {
#ifdef VALID
  constexpr bool operator()(int, int, int q, int kv) const { return q == kv; }
#else
  constexpr void operator()(int, int, int, int) const {}
#endif
};

constexpr auto both = mask::causal{} & silent{};
