// SPDX-License-Identifier: Apache-2.0
// Options of a program: `--name value` or `--name=value`, flags without a value.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace examples {

struct option {
  const char* name;  ///< without the dashes
  const char* value; ///< what stands for the value in --help; null for a flag
  const char* help;  ///< further lines after a '\n'
};

class command_line {
public:
  /// @throws std::invalid_argument for an option that is not known, given twice or without its
  /// value.
  command_line(int count, const char* const* words, std::span<const option> known) {
    for (int i = 1; i < count; ++i) {
      const std::string word = words[i];
      if (word.rfind("--", 0) != 0) {
        throw std::invalid_argument("expected --NAME VALUE, not '" + word + "'");
      }
      const auto equals = word.find('=');
      const std::string name = word.substr(2, equals == std::string::npos ? equals : equals - 2);
      const option* found = find(known, name);
      if (!found) throw std::invalid_argument("no option is called --" + name + "; see --help");
      if (given_.count(name)) throw std::invalid_argument("--" + name + " is given twice");
      if (!found->value) {
        if (equals != std::string::npos) throw std::invalid_argument("--" + name + " has no value");
        given_[name] = "";
      } else if (equals != std::string::npos) {
        given_[name] = word.substr(equals + 1);
      } else if (i + 1 < count) {
        given_[name] = words[++i];
      } else {
        throw std::invalid_argument("--" + name + " expects a value: " + found->value);
      }
    }
  }

  bool has(const std::string& name) const { return given_.count(name) > 0; }

  std::string text(const std::string& name, const std::string& otherwise = "") const {
    const auto found = given_.find(name);
    return found == given_.end() ? otherwise : found->second;
  }

  /// @throws std::invalid_argument if the option is missing.
  std::string required(const std::string& name) const {
    if (!has(name)) throw std::invalid_argument("--" + name + " is missing; see --help");
    return text(name);
  }

  /// @throws std::invalid_argument unless it is a whole number from `least` to `most`.
  long long whole(const std::string& name, long long otherwise, long long least,
                  long long most = 2147483647) const {
    if (!has(name)) return otherwise;
    const std::string word = text(name);
    char* end = nullptr;
    errno = 0;
    const long long value = std::strtoll(word.c_str(), &end, 10);
    if (word.empty() || *end != '\0' || errno != 0 || value < least || value > most) {
      throw std::invalid_argument("--" + name + " is '" + word +
                                  "', expected a whole number from " + std::to_string(least) +
                                  " to " + std::to_string(most));
    }
    return value;
  }

  /// @throws std::invalid_argument unless it is a positive number.
  float positive(const std::string& name, float otherwise) const {
    if (!has(name)) return otherwise;
    const std::string word = text(name);
    char* end = nullptr;
    const float value = std::strtof(word.c_str(), &end);
    if (word.empty() || *end != '\0' || !std::isfinite(value) || !(value > 0)) {
      throw std::invalid_argument("--" + name + " is '" + word + "', expected a positive number");
    }
    return value;
  }

  /// @throws std::invalid_argument unless it is one of `names`.
  std::string one_of(const std::string& name, std::span<const char* const> names,
                     const std::string& otherwise) const {
    const std::string word = text(name, otherwise);
    std::string list;
    for (const char* known : names) {
      if (word == known) return word;
      list += (list.empty() ? "" : ", ") + std::string{known};
    }
    throw std::invalid_argument("--" + name + " is '" + word + "', expected one of " + list);
  }

  /// The options as lines of a --help text.
  static std::string list(std::span<const option> known) {
    constexpr std::size_t column = 28;
    std::string text;
    for (const option& o : known) {
      std::string line{"  --"};
      line += o.name;
      if (o.value) line.append(" ").append(o.value);
      line.resize(std::max(column, line.size() + 1), ' ');
      for (const char* c = o.help; *c; ++c) {
        line += *c;
        if (*c == '\n') line.append(column, ' ');
      }
      text += line + '\n';
    }
    return text;
  }

private:
  static const option* find(std::span<const option> known, const std::string& name) {
    for (const option& o : known) {
      if (name == o.name) return &o;
    }
    return nullptr;
  }

  std::map<std::string, std::string> given_;
};

} // namespace examples
