// SPDX-License-Identifier: Apache-2.0
// Ranks compare what they were given before they rely on it.
#pragma once

#include <maskring/comm/concepts.hpp>
#include <maskring/core/errors.hpp>

#include <cstring>

namespace maskring::cp {

/// Something that must be the same on all ranks: a number, or the fingerprint of a thing.
struct fact {
  const char* name;
  std::uint64_t value;
  bool number = true;
};

/// Exchanges the facts and compares them. All ranks call it with as many facts.
/// @throws std::invalid_argument on every rank, naming the first fact that differs and the rank
///         whose fact differs from rank 0's.
template <comm::sharing Comm>
void require_agreement(Comm& comm, const char* call, std::span<const fact> facts) {
  std::vector<std::uint64_t> mine;
  for (const fact& f : facts) mine.push_back(f.value);
  const std::vector<std::byte> all = comm.share(std::as_bytes(std::span{mine}));
  const auto value = [&](int rank, std::size_t i) {
    std::uint64_t out = 0;
    std::memcpy(&out,
                all.data() + (static_cast<std::size_t>(rank) * facts.size() + i) * sizeof(out),
                sizeof(out));
    return out;
  };
  for (std::size_t i = 0; i < facts.size(); ++i) {
    for (int rank = 1; rank < comm.size(); ++rank) {
      const std::uint64_t theirs = value(rank, i), first = value(0, i);
      if (theirs == first) continue;
      if (facts[i].number) {
        maskring::detail::bad_argument(call, ": ", facts[i].name, " is ",
                                       static_cast<std::int64_t>(theirs), " on rank ", rank,
                                       " and ", static_cast<std::int64_t>(first),
                                       " on rank 0, expected the same on all ranks");
      }
      maskring::detail::bad_argument(call, ": rank ", rank, " has another ", facts[i].name,
                                     " than rank 0, expected the same on all ranks");
    }
  }
}

} // namespace maskring::cp
