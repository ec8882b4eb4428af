// SPDX-License-Identifier: Apache-2.0
// "NAME:ARG:ARG" on a command line.
#pragma once

#include <cmath>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace examples {

/// A name and its arguments, read one after the other, each with a default.
class words {
public:
  explicit words(const std::string& text) {
    std::size_t start = text.find(':');
    name_ = text.substr(0, start);
    while (start != std::string::npos) {
      const std::size_t end = text.find(':', start + 1);
      arguments_.push_back(text.substr(start + 1, end - start - 1));
      start = end;
    }
  }

  const std::string& name() const { return name_; }

  /// @throws std::invalid_argument if the next argument is given and not a number.
  double number(const char* what, double otherwise) {
    if (next_ >= arguments_.size() || arguments_[next_].empty()) {
      ++next_;
      return otherwise;
    }
    const std::string& text = arguments_[next_++];
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (*end != '\0') refuse(what, text, "a number");
    return value;
  }
  int integer(const char* what, long long otherwise) {
    const double value = number(what, static_cast<double>(otherwise));
    if (value != std::floor(value) || std::abs(value) >= 0x1p31) {
      refuse(what, arguments_[next_ - 1], "a whole number");
    }
    return static_cast<int>(value);
  }

  /// @throws std::invalid_argument if the next argument is missing or no whole number.
  int required_integer(const char* what) {
    if (next_ >= arguments_.size() || arguments_[next_].empty()) {
      throw std::invalid_argument(name_ + ": the " + what + " is missing, expected " + name_ +
                                  (next_ > 0 ? ":…" : "") + ":NUMBER");
    }
    return integer(what, 0);
  }

  /// @throws std::invalid_argument if arguments are left over.
  void finish() const {
    if (next_ < arguments_.size()) {
      throw std::invalid_argument(name_ + ": " + std::to_string(arguments_.size()) +
                                  " arguments, expected at most " + std::to_string(next_));
    }
  }

private:
  [[noreturn]] void refuse(const char* what, const std::string& text, const char* expected) const {
    throw std::invalid_argument(name_ + ": " + what + " is '" + text + "', expected " + expected);
  }

  std::string name_;
  std::vector<std::string> arguments_;
  std::size_t next_ = 0;
};

/// One line of a list of names.
struct named_entry {
  const char* name;
  const char* arguments;  ///< as in --help, with the leading colons
  const char* definition; ///< keep where, or the new score
  const char* type;       ///< the class behind it, to be found in the header
  const char* header;
};

/// The entries as lines of a --help text.
template <class Entries>
std::string list_names(const Entries& entries) {
  std::string text;
  for (const named_entry& e : entries) {
    std::string line = "  " + std::string{e.name} + e.arguments;
    line.resize(line.size() < 44 ? 44 : line.size() + 1, ' ');
    text += line + e.definition + '\n';
  }
  return text;
}

template <class Entries>
[[noreturn]] void refuse_name(const char* kind, const std::string& name, const Entries& entries) {
  std::string known;
  for (const named_entry& e : entries) known += (known.empty() ? "" : ", ") + std::string{e.name};
  throw std::invalid_argument("no " + std::string{kind} + " is called '" + name +
                              "', expected one of " + known);
}

/// Arithmetic of the kind that tables of examples are filled with: a fixed sequence of numbers
/// below `limit` that looks random (a linear congruential generator; D. H. Lehmer, 1949).
class dice {
public:
  int operator()(long long limit) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int>((state_ >> 33) % static_cast<unsigned long long>(limit));
  }

private:
  unsigned long long state_ = 42;
};

} // namespace examples
