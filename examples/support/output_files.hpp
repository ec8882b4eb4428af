// SPDX-License-Identifier: Apache-2.0
// Output files that appear complete or not at all.
#pragma once

#include "npy.hpp"

#include <cstdio>
#include <filesystem>

#include <unistd.h>

namespace examples {

/// A place that cannot be written to shows when a file is announced, before the work. Arrays are
/// written to temporary files beside their destinations and commit() renames them; without it
/// nothing is left.
class output_files {
public:
  output_files() = default;
  output_files(const output_files&) = delete;
  ~output_files() {
    for (const file& f : files_) std::remove(f.temporary.c_str());
  }

  /// @throws std::invalid_argument naming the option if the file cannot be made, or is announced
  ///         twice.
  void announce(const std::string& option, const std::string& path) {
    file made{option, path, path + ".tmp-" + std::to_string(::getpid()), {}};
    std::error_code trouble;
    const auto there = std::filesystem::status(path, trouble);
    const bool replaceable =
        !std::filesystem::exists(there) || std::filesystem::is_regular_file(there);
    if (path.empty() || !replaceable || !std::ofstream{made.temporary, std::ios::binary}) {
      throw std::invalid_argument("--" + option + ": '" + path + "' cannot be written");
    }
    std::remove(made.temporary.c_str());
    made.where = std::filesystem::weakly_canonical(std::filesystem::absolute(path));
    for (const file& f : files_) {
      if (f.where == made.where) {
        throw std::invalid_argument("--" + option + " and --" + f.option + " are the same file, " +
                                    path);
      }
    }
    files_.push_back(made);
  }

  /// @throws std::runtime_error if writing fails.
  void write(const std::string& option, const npy_array& array) {
    for (const file& f : files_) {
      if (f.option != option) continue;
      std::ofstream out{f.temporary, std::ios::binary | std::ios::trunc};
      const std::string preamble = npy_preamble(array);
      out.write(preamble.data(), static_cast<std::streamsize>(preamble.size()));
      out.write(array.bytes.data(), static_cast<std::streamsize>(array.bytes.size()));
      out.close();
      if (!out) throw std::runtime_error("writing " + f.path + " failed");
    }
  }

  /// @throws std::runtime_error if a file cannot get its name.
  void commit() {
    for (const file& f : files_) {
      if (std::rename(f.temporary.c_str(), f.path.c_str()) != 0) {
        throw std::runtime_error("renaming " + f.temporary + " to " + f.path + " failed");
      }
    }
    files_.clear();
  }

private:
  struct file {
    std::string option, path, temporary;
    std::filesystem::path where; // the same for every way to write the path
  };
  std::vector<file> files_;
};

} // namespace examples
