// SPDX-License-Identifier: Apache-2.0
#include <maskring/cuda.cuh>

bool sees(maskring::verdict expected, const maskring::tile& where) {
  return maskring::verdict_of(maskring::mask::causal{}, where) == expected;
}
