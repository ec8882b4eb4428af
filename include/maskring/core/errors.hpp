// SPDX-License-Identifier: Apache-2.0
// How bad arguments are reported: one sentence naming the argument, its value and the expectation.
#pragma once

#include <sstream>
#include <stdexcept>

namespace maskring::detail {

/// Throws std::invalid_argument with the words given, written one after the other.
template <class... Words>
[[noreturn]] void bad_argument(const Words&... words) {
  std::ostringstream message;
  message << "maskring: ";
  (message << ... << words);
  throw std::invalid_argument(message.str());
}

template <class... Words>
constexpr void require(bool condition, const Words&... words) {
  if (!condition) bad_argument(words...);
}

} // namespace maskring::detail
