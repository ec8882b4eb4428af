// SPDX-License-Identifier: Apache-2.0
// Attention on tensors in .npy files: forward, and backward where gradients are asked for.
#include "job.hpp"
#include "masks.hpp"
#include "support/any_layout.hpp"
#include "support/any_score.hpp"
#include "support/command_line.hpp"
#include "support/output_files.hpp"

#include <algorithm>
#include <cstdio>
#include <exception>
#include <new>

namespace {

using attend::job;
using examples::command_line;
using examples::npy_array;

constexpr const char* devices[] = {"cpu"};
constexpr const char* methods[] = {"ring", "all-gather"};
constexpr const char* layouts[] = {"contiguous", "zigzag", "striped"};

constexpr examples::option known[] = {
    {"q", "FILE", "queries [batch, heads, sequence, dim]"},
    {"k", "FILE", "keys [batch, key heads, key sequence, dim];\nheads is a multiple of key heads"},
    {"v", "FILE", "values [batch, key heads, key sequence, value dim]"},
    {"mask", "MASK", "which scores are kept, see below (full)"},
    {"score", "SCORE", "how scores are changed before the mask, see below (none)"},
    {"doc-lengths", "FILE",
     "int32 or int64 [documents]: how long the documents are\nthat the sequence "
     "is packed from"},
    {"scale", "X", "of q·k (1/√dim)"},
    {"ranks", "N", "split the sequence over so many ranks, threads here (1)"},
    {"layout", "L", "how it is split: contiguous, zigzag or striped (contiguous)"},
    {"method", "M", "how the ranks work together: ring or all-gather (ring)"},
    {"device", "D", "cpu (cpu)"},
    {"out", "FILE", "where the output goes, shaped like q with the value dim"},
    {"lse", "FILE", "where the log-sum-exp goes, float32 [batch, heads, sequence]"},
    {"grad-out", "FILE", "the gradient of the output; with it,"},
    {"dq", "FILE", "where the gradients of q,"},
    {"dk", "FILE", "k"},
    {"dv", "FILE", "and v go; one of them at least"},
    {"help", nullptr, "this text"},
};

void print_help() {
  std::printf(
      "usage: attend --q FILE --k FILE --v FILE --mask MASK --out FILE [OPTION]...\n\n"
      "softmax(score(q·kᵀ·scale) where the mask keeps, else −∞)·v on NumPy arrays: .npy files of "
      "float32\n"
      "or float16, all of one type, which is also the type of the results. Sums are float32.\n\n"
      "%s\n"
      "A MASK is NAME[:ARG]..., or several joined by & (and) and | (or), with ! (not) before a "
      "name.\n"
      "q and kv are positions of a query and a key; masks:\n%s\n"
      "with tables that are made up, to try them out:\n%s\n"
      "A SCORE is NAME[:ARG]..., or several joined by > (then); s is q·k·scale:\n%s\n"
      "layouts:\n%s\n"
      "Exit status: 0, 1 if something failed, 2 for input that cannot be used; output files are\n"
      "complete or not there.\n",
      command_line::list(known).c_str(), examples::list_names(attend::mask_names).c_str(),
      examples::list_names(attend::further_mask_names()).c_str(),
      examples::list_names(examples::score_names).c_str(),
      examples::list_names(examples::layout_names).c_str());
}

/// The array that an option names, of `rank` extents; what is wrong with it is said with the
/// option.
npy_array read_array(const command_line& line, const char* name,
                     const std::vector<std::string>& dtypes, std::size_t rank,
                     const char* extents) {
  const std::string path = line.required(name);
  try {
    npy_array a = examples::read_npy(path, dtypes);
    if (a.shape.size() != rank) {
      throw std::invalid_argument(path + " has shape " + examples::shape_text(a.shape) +
                                  ", expected " + extents);
    }
    return a;
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument("--" + std::string{name} + ": " + error.what());
  }
}

npy_array read_tensor(const command_line& line, const char* name) {
  return read_array(line, name, {"<f4", "<f2"}, 4, "4 extents [batch, heads, sequence, dim]");
}

std::vector<int> read_lengths(const command_line& line) {
  const npy_array a = read_array(line, "doc-lengths", {"<i4", "<i8"}, 1, "one extent");
  std::vector<int> lengths;
  for (long long i = 0; i < a.shape[0]; ++i) {
    const long long length =
        a.dtype == "<i4" ? a.data<std::int32_t>()[i] : a.data<std::int64_t>()[i];
    if (length < 0 || length > 2147483647) {
      throw std::invalid_argument("--doc-lengths: the length of document " + std::to_string(i) +
                                  " is " + std::to_string(length) + ", expected 0 to 2^31 - 1");
    }
    lengths.push_back(static_cast<int>(length));
  }
  return lengths;
}

/// What the library's checks would find too, but in terms of the options.
void check_shapes(const job& work) {
  const auto expect = [](const char* name, const npy_array& a, std::vector<long long> shape,
                         const char* because) {
    if (a.shape == shape) return;
    throw std::invalid_argument("--" + std::string{name} + " has shape " +
                                examples::shape_text(a.shape) + ", expected " +
                                examples::shape_text(shape) + " (" + because + ")");
  };
  const auto& q = work.q.shape;
  const auto& k = work.k.shape;
  const auto& v = work.v.shape;
  if (q[3] == 0 || v[3] == 0) {
    throw std::invalid_argument(std::string{q[3] == 0 ? "--q" : "--v"} +
                                " has dim 0, expected 1 or more");
  }
  expect("k", work.k, {q[0], k[1], k[2], q[3]}, "batch and dim as q");
  expect("v", work.v, {q[0], k[1], k[2], v[3]}, "batch, heads and sequence as k");
  if (q[1] > 0 && (k[1] == 0 || q[1] % k[1] != 0)) {
    throw std::invalid_argument("--q has " + std::to_string(q[1]) +
                                " heads, expected a multiple of the " + std::to_string(k[1]) +
                                " heads of --k");
  }
  if (work.backward) {
    expect("grad-out", work.grad_out, {q[0], q[1], q[2], v[3]}, "as the output");
  }
  for (const npy_array* a : {&work.k, &work.v, work.backward ? &work.grad_out : &work.q}) {
    if (a->dtype != work.q.dtype) {
      throw std::invalid_argument("the tensors are of types '" + work.q.dtype + "' and '" +
                                  a->dtype + "', expected one type");
    }
  }
}

npy_array empty_array(const std::string& dtype, std::vector<long long> shape) {
  long long bytes = dtype == "<f4" ? 4 : 2;
  for (long long extent : shape) bytes *= extent;
  return {dtype, std::move(shape), std::vector<char>(static_cast<std::size_t>(bytes))};
}

void run(const command_line& line) {
  line.one_of("device", devices, "cpu");
  job work;
  work.mask = line.text("mask", "full");
  work.score = line.text("score", "none");
  work.scale = line.positive("scale", 0);
  work.ranks = static_cast<int>(line.whole("ranks", 1, 1, 1024));
  work.layout = line.one_of("layout", layouts, "contiguous");
  work.method = line.one_of("method", methods, "ring");
  work.backward = line.has("grad-out");
  const bool gradients = line.has("dq") || line.has("dk") || line.has("dv");
  if (work.backward != gradients) {
    throw std::invalid_argument(work.backward ? "--grad-out expects one of --dq, --dk and --dv"
                                              : "--dq, --dk and --dv expect --grad-out");
  }
  work.q = read_tensor(line, "q");
  work.k = read_tensor(line, "k");
  work.v = read_tensor(line, "v");
  if (work.backward) work.grad_out = read_tensor(line, "grad-out");
  if (line.has("doc-lengths")) work.document_lengths = read_lengths(line);
  check_shapes(work);
  attend::masks{work.document_lengths, work.mask_shape()}(work.mask);
  examples::score_library{work.mask_shape()}(work.score);

  line.required("out");
  examples::output_files files;
  for (const char* name : {"out", "lse", "dq", "dk", "dv"}) {
    if (line.has(name)) files.announce(name, line.text(name));
  }
  const auto& q = work.q.shape;
  work.out = empty_array(work.q.dtype, {q[0], q[1], q[2], work.v.shape[3]});
  work.lse = empty_array("<f4", {q[0], q[1], q[2]});
  if (work.backward) {
    work.dq = empty_array(work.q.dtype, q);
    work.dk = empty_array(work.q.dtype, work.k.shape);
    work.dv = empty_array(work.q.dtype, work.v.shape);
  }
  attend::run_on_host(work);
  files.write("out", work.out);
  files.write("lse", work.lse);
  files.write("dq", work.dq);
  files.write("dk", work.dk);
  files.write("dv", work.dv);
  files.commit();
}

} // namespace

int main(int count, char** words) {
  try {
    const command_line line{count, words, known};
    if (line.has("help")) {
      print_help();
    } else {
      run(line);
    }
    return 0;
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "attend: %s\n", error.what());
    return 2;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "attend: there is not enough memory\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "attend: %s\n", error.what());
  }
  return 1;
}
