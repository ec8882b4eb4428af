// SPDX-License-Identifier: Apache-2.0
// Arrays in NumPy's .npy format, versions 1 and 2: little-endian, C order.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace examples {

struct npy_array {
  std::string dtype; ///< as in the file: "<f4"
  std::vector<long long> shape;
  std::vector<char> bytes;

  template <class T>
  T* data() {
    return reinterpret_cast<T*>(bytes.data());
  }
  template <class T>
  const T* data() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
};

inline std::string shape_text(const std::vector<long long>& shape) {
  std::string text = "[";
  for (long long extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

namespace detail {

/// Reads the Python dictionary of a header: three keys, strings, booleans and a tuple of integers.
class npy_header {
public:
  npy_header(const std::string& path, const std::string& text) : path_{path}, text_{text} {
    read();
  }

  std::string dtype;
  bool fortran_order = false;
  std::vector<long long> shape;

private:
  void read() {
    bool seen[3] = {};
    expect('{');
    while (!take('}')) {
      const std::string key = quoted();
      expect(':');
      if (key == "descr") {
        if (peek() != '\'' && peek() != '"') {
          throw std::invalid_argument(path_ + " holds records, expected an array of numbers");
        }
        dtype = quoted();
        seen[0] = true;
      } else if (key == "fortran_order") {
        fortran_order = boolean();
        seen[1] = true;
      } else if (key == "shape") {
        shape = tuple();
        seen[2] = true;
      } else {
        refuse();
      }
      if (!take(',') && peek() != '}') refuse();
    }
    if (!seen[0] || !seen[1] || !seen[2]) refuse();
  }

  [[noreturn]] void refuse() const {
    throw std::invalid_argument(path_ + " has a .npy header that cannot be read");
  }
  char peek() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) refuse();
  }
  std::string quoted() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') refuse();
    const std::size_t end = text_.find(quote, ++at_);
    if (end == std::string::npos) refuse();
    const std::string out = text_.substr(at_, end - at_);
    at_ = end + 1;
    return out;
  }
  bool boolean() {
    for (const char* word : {"True", "False"}) {
      if (peek() == *word && text_.compare(at_, std::strlen(word), word) == 0) {
        at_ += std::strlen(word);
        return *word == 'T';
      }
    }
    refuse();
  }
  std::vector<long long> tuple() {
    std::vector<long long> out;
    expect('(');
    while (!take(')')) {
      long long value = 0;
      if (peek() < '0' || peek() > '9') refuse();
      for (; peek() >= '0' && peek() <= '9'; ++at_) {
        if (value > std::numeric_limits<long long>::max() / 16) refuse();
        value = value * 10 + (text_[at_] - '0');
      }
      out.push_back(value);
      if (!take(',') && peek() != ')') refuse();
    }
    return out;
  }

  std::string path_, text_;
  std::size_t at_ = 0;
};

} // namespace detail

/// Reads an array whose type is one of `dtypes`, e.g. {"<f4", "<f2"}.
/// @throws std::invalid_argument naming the file if it is missing, no .npy file, shorter or longer
///         than its header says, in Fortran order, big-endian or of another type.
inline npy_array read_npy(const std::string& path, const std::vector<std::string>& dtypes) {
  std::ifstream file{path, std::ios::binary | std::ios::ate};
  if (!file) throw std::invalid_argument(path + " cannot be opened");
  const auto size = static_cast<long long>(file.tellg());
  file.seekg(0);
  char magic[8] = {};
  if (!file.read(magic, 8) || std::memcmp(magic, "\x93NUMPY", 6) != 0) {
    throw std::invalid_argument(path + " is no .npy file");
  }
  const int version = magic[6];
  if (version != 1 && version != 2) {
    throw std::invalid_argument(path + " is of .npy version " + std::to_string(version) +
                                ", expected 1 or 2");
  }
  unsigned char length_bytes[4] = {};
  file.read(reinterpret_cast<char*>(length_bytes), version == 1 ? 2 : 4);
  long long length = 0;
  for (int i = 3; i >= 0; --i) length = length * 256 + length_bytes[i];
  const long long begin = (version == 1 ? 10 : 12) + length;
  if (!file || begin > size)
    throw std::invalid_argument(path + " is truncated: its header is cut off");
  std::string text(static_cast<std::size_t>(length), '\0');
  file.read(text.data(), length);
  const detail::npy_header header{path, text};

  if (!header.dtype.empty() && header.dtype[0] == '>') {
    throw std::invalid_argument(path + " is big-endian ('" + header.dtype +
                                "'), expected little-endian");
  }
  std::string expected;
  bool known = false;
  for (const std::string& d : dtypes) {
    known = known || d == header.dtype;
    expected += (expected.empty() ? "'" : " or '") + d + "'";
  }
  if (!known) {
    throw std::invalid_argument(path + " is of type '" + header.dtype + "', expected " + expected);
  }
  if (header.fortran_order && header.shape.size() > 1) {
    throw std::invalid_argument(path + " is in Fortran order, expected C order");
  }
  long long bytes = header.dtype.back() - '0';
  for (long long extent : header.shape) {
    if (extent != 0 && bytes > std::numeric_limits<long long>::max() / extent) bytes = -1;
    if (bytes >= 0) bytes *= extent;
  }
  if (bytes != size - begin) {
    throw std::invalid_argument(
        path + (bytes < 0 || bytes > size - begin ? " is truncated: " : " is too long: ") +
        "it holds " + std::to_string(size - begin) + " bytes of data, expected " +
        (bytes < 0 ? "far more" : std::to_string(bytes)) + " for shape " +
        shape_text(header.shape));
  }
  npy_array out{header.dtype, header.shape, std::vector<char>(static_cast<std::size_t>(bytes))};
  if (!file.read(out.bytes.data(), bytes)) throw std::invalid_argument(path + " cannot be read");
  return out;
}

/// What goes before the data: magic, version, length and header, in all a multiple of 64 bytes.
inline std::string npy_preamble(const npy_array& array) {
  std::string tuple = "(";
  for (long long extent : array.shape) tuple += std::to_string(extent) + ", ";
  if (array.shape.size() > 1) tuple.resize(tuple.size() - 2);
  std::string header =
      "{'descr': '" + array.dtype + "', 'fortran_order': False, 'shape': " + tuple + "), }";
  header.resize((10 + header.size()) / 64 * 64 + 64 - 10 - 1, ' ');
  header += '\n';
  std::string out{"\x93NUMPY\x01\x00", 8};
  out += static_cast<char>(header.size() & 0xff);
  out += static_cast<char>(header.size() >> 8);
  return out + header;
}

} // namespace examples
