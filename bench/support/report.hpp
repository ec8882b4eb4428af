// SPDX-License-Identifier: Apache-2.0
// What a benchmark says: one line a measurement as it goes, and all of them as JSON.
#pragma once

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace bench {

/// One measurement: named values in the order they were given.
class record {
public:
  record& text(const std::string& name, const std::string& value) {
    return add(name, '"' + value + '"');
  }
  record& number(const std::string& name, double value) {
    std::ostringstream digits;
    digits.precision(6);
    digits << value;
    return add(name, digits.str());
  }
  record& integer(const std::string& name, long long value) {
    return add(name, std::to_string(value));
  }

  std::string json() const {
    std::string out = "{";
    for (const auto& [name, value] : fields_) {
      out += (out.size() > 1 ? ", \"" : "\"") + name + "\": " + value;
    }
    return out + "}";
  }
  std::string line() const {
    std::string out;
    for (const auto& [name, value] : fields_) out += (out.empty() ? "" : "  ") + name + " " + value;
    return out;
  }

private:
  record& add(const std::string& name, std::string value) {
    fields_.emplace_back(name, std::move(value));
    return *this;
  }
  std::vector<std::pair<std::string, std::string>> fields_;
};

/// Prints records and, if it has a file name, writes them all when it goes.
class report {
public:
  report(std::string device, std::string file)
      : device_{std::move(device)}, file_{std::move(file)} {}
  report(const report&) = delete;
  report& operator=(const report&) = delete;
  ~report() {
    if (file_.empty()) return;
    std::ofstream out{file_};
    out << "{\"device\": \"" << device_ << "\", \"results\": [\n";
    for (std::size_t i = 0; i < records_.size(); ++i) {
      out << "  " << records_[i].json() << (i + 1 < records_.size() ? ",\n" : "\n");
    }
    out << "]}\n";
  }

  void add(const record& r) {
    std::printf("%s\n", r.line().c_str());
    std::fflush(stdout);
    records_.push_back(r);
  }

private:
  std::string device_, file_;
  std::vector<record> records_;
};

/// The value of `--name VALUE` among the program's arguments, or `otherwise`.
inline std::string argument(int count, char** arguments, const std::string& name,
                            const std::string& otherwise) {
  for (int i = 1; i + 1 < count; ++i) {
    if (arguments[i] == "--" + name) return arguments[i + 1];
  }
  return otherwise;
}

} // namespace bench
