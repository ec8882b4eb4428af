// SPDX-License-Identifier: Apache-2.0
// A mask travels to kernels byte by byte: one that owns memory is refused.
// expect: mask_mod
// expect: is_trivially_copyable
#include <maskring/mask/basic.hpp>

#include <vector>

using namespace maskring;

struct lengths {
#ifdef VALID
  const int* values;
#else
  std::vector<int> values;
#endif
  bool operator()(int b, int, int, int kv) const { return kv < values[b]; }
};

verdict ask_it(const lengths& mask) { return verdict_of(mask, tile{.q = {0, 7}, .kv = {0, 7}}); }
