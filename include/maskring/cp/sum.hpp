// SPDX-License-Identifier: Apache-2.0
// The gradients of parameters that all ranks have, from the ranks' parts.
#pragma once

#include <maskring/comm/concepts.hpp>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

namespace maskring::cp {

/// Makes `part` the sum of all ranks' parts, added in the order of ranks, so that it is bitwise the
/// same everywhere: for the gradients of bias tables (score::bias_table::gradient()) and of sinks
/// after a backward pass. Host memory, the same size on all ranks; every rank calls it.
template <comm::sharing Comm, class T>
void sum_over_ranks(Comm& comm, std::span<T> part) {
  const auto all = comm.share(std::as_bytes(part));
  std::vector<T> one(part.size());
  std::fill(part.begin(), part.end(), T{});
  for (int rank = 0; rank < comm.size() && !part.empty(); ++rank) {
    std::memcpy(one.data(), all.data() + static_cast<std::size_t>(rank) * part.size_bytes(),
                part.size_bytes());
    for (std::size_t i = 0; i < part.size(); ++i) part[i] += one[i];
  }
}

} // namespace maskring::cp
