// SPDX-License-Identifier: Apache-2.0
// Attention local and context-parallel, forward and backward, each checked: the job of PyTorch's
// flex_attention_cp example.
#include "dense.hpp"
#include "support/command_line.hpp"

#include <maskring/block/build.hpp>
#include <maskring/block/text.hpp>
#include <maskring/shard/rewrite.hpp>

#include <cstdio>
#include <exception>

namespace {

using namespace maskring;
using examples::any_layout;
using examples::any_mask;
using examples::command_line;

constexpr const char* methods[] = {"ring", "all-gather", "ulysses"};
constexpr const char* layouts[] = {"contiguous", "zigzag", "striped"};
#ifdef MASKRING_WITH_CUDA
constexpr const char* devices[] = {"cpu", "cuda"};
constexpr const char* devices_text = "cpu or cuda: ranks share the GPUs there are (cpu)";
#else
constexpr const char* devices[] = {"cpu"};
constexpr const char* devices_text = "cpu (cpu)";
#endif

constexpr examples::option known[] = {
    {"ranks", "N", "over which the sequence is split, threads here (4)"},
    {"seq", "N", "tokens (32 a rank)"},
    {"batch", "N", "(8)"},
    {"heads", "N", "of queries (8)"},
    {"kv-heads", "N", "of keys and values; heads is a multiple (heads)"},
    {"dim", "N", "of queries and keys (32)"},
    {"v-dim", "N", "of values (dim)"},
    {"mask", "MASK", "which scores are kept, see below (causal)"},
    {"score", "SCORE", "how scores are changed before the mask, see below (none)"},
    {"layout", "L", "how the sequence is split: contiguous, zigzag or striped\n(contiguous)"},
    {"method", "M", "how the ranks work together: ring, all-gather or ulysses\n(ring)"},
    {"device", "D", devices_text},
    {"seed", "N", "of the inputs, unit-normal float32 numbers (0)"},
    {"help", nullptr, "this text"},
};

void print_help() {
  std::printf(
      "usage: flex_attention_cp [OPTION]...\n\n"
      "Computes attention on one rank and with the sequence split over several, forward and\n"
      "backward, and checks both against a dense reference in double precision.\n\n%s\n"
      "A MASK is NAME[:ARG]..., or several joined by & (and) and | (or), with ! (not) before\n"
      "a name:\n%s\n"
      "A SCORE is NAME[:ARG]..., or several joined by > (then); s is q·k·scale:\n%s\n"
      "Exit status: 0 if all checks hold, 1 if not, 2 for options that cannot be used.\n",
      command_line::list(known).c_str(), examples::list_names(examples::mask_names).c_str(),
      examples::list_names(examples::score_names).c_str());
}

flex::settings read(const command_line& line) {
  flex::settings s;
  const auto whole = [&](const char* name, int otherwise, int least, int most) {
    return static_cast<int>(line.whole(name, otherwise, least, most));
  };
  s.ranks = whole("ranks", s.ranks, 1, 256);
  s.n.tokens = whole("seq", 32 * s.ranks, 1, 1 << 20);
  s.n.batch = whole("batch", s.n.batch, 1, 1 << 16);
  s.n.heads = whole("heads", s.n.heads, 1, 1 << 16);
  s.n.kv_heads = whole("kv-heads", s.n.heads, 1, 1 << 16);
  s.n.dim = whole("dim", s.n.dim, 1, 1 << 16);
  s.n.v_dim = whole("v-dim", s.n.dim, 1, 1 << 16);
  s.seed = static_cast<unsigned>(line.whole("seed", 0, 0, 4294967295));
  s.mask = line.text("mask", s.mask);
  s.score = line.text("score", s.score);
  s.layout = line.one_of("layout", layouts, s.layout);
  s.method = line.one_of("method", methods, s.method);
  s.device = line.one_of("device", devices, s.device);
  if (s.n.heads % s.n.kv_heads != 0) {
    throw std::invalid_argument("--heads is " + std::to_string(s.n.heads) +
                                ", expected a multiple of --kv-heads, which is " +
                                std::to_string(s.n.kv_heads));
  }
  return s;
}

/// The queries of each rank down, all keys across.
void print_block_maps(const flex::settings& s, const any_mask& mask, const any_layout& layout) {
  const int tile = (s.n.tokens + 31) / 32;
  std::printf("block map of each rank: its queries down, all keys across, tiles of %d x %d;\n"
              "# full, + partial, . empty\n",
              tile, tile);
  for (int rank = 0; rank < s.ranks; ++rank) {
    const auto local = shard::rewrite(mask, layout.map(rank), shard::whole{});
    const block_map map =
        make_block_map(local, {s.n.batch, s.n.heads, layout.size(rank), s.n.tokens}, {tile, tile});
    std::printf("rank %d, %.0f %% empty\n%s", rank, map.sparsity(), to_string(map.view()).c_str());
  }
}

void print_savings(const flex::settings& s, const cp::savings& saved) {
  const auto part = [](index_t some, index_t all) {
    return all == 0 ? 0.0 : 100.0 * static_cast<double>(some) / static_cast<double>(all);
  };
  std::printf("plan: %lld of %lld steps computed; sent of what an unplanned %s would send:\n"
              "      forward %lld of %lld bytes (%.0f %%), backward %lld of %lld bytes (%.0f %%)\n",
              static_cast<long long>(saved.steps), static_cast<long long>(saved.possible_steps),
              s.method.c_str(), static_cast<long long>(saved.forward_bytes),
              static_cast<long long>(saved.unplanned_forward_bytes),
              part(saved.forward_bytes, saved.unplanned_forward_bytes),
              static_cast<long long>(saved.backward_bytes),
              static_cast<long long>(saved.unplanned_backward_bytes),
              part(saved.backward_bytes, saved.unplanned_backward_bytes));
}

/// One line; whether it holds.
bool check(const char* what, double error, double tolerance) {
  const bool holds = error <= tolerance;
  std::printf("%-56s %9.2e   %9.1e   %s\n", what, error, tolerance, holds ? "ok" : "MISMATCH");
  return holds;
}

const flex::device_calls& calls_of([[maybe_unused]] const flex::settings& s) {
#ifdef MASKRING_WITH_CUDA
  if (s.device == "cuda") return flex::on_cuda;
#endif
  return flex::on_host;
}

bool run(const flex::settings& s) {
  const flex::sizes& n = s.n;
  examples::mask_library library{{n.batch, n.heads, n.tokens, n.tokens}};
  const any_mask mask = library(s.mask);
  examples::score_library scores{{n.batch, n.heads, n.tokens, n.tokens}};
  const examples::any_score change = scores(s.score);
  const examples::any_score* score = s.score == "none" ? nullptr : &change;
  const any_layout layout{s.layout, n.tokens, s.ranks};
  std::printf("float32, batch %d, %d heads, %d key heads, dim %d, value dim %d, %d tokens\n"
              "mask %s%s%s, %d ranks, layout %s, method %s, device %s, seed %u\n\n",
              n.batch, n.heads, n.kv_heads, n.dim, n.v_dim, n.tokens, s.mask.c_str(),
              score ? ", score " : "", score ? s.score.c_str() : "", s.ranks,
              s.layout.c_str(), s.method.c_str(), s.device.c_str(), s.seed);
  print_block_maps(s, mask, layout);

  const cp::shape shape{n.batch, n.heads, n.kv_heads, n.dim, n.v_dim};
  const cp::plan plan{mask, shape, cp::shards{layout}};
  if (s.method != "ulysses") { // whose traffic does not depend on the mask
    std::printf("\n");
    print_savings(s, plan.saved(shape, sizeof(float)));
  }

  flex::whole<float> local{n, n.tokens};
  flex::fill_normal(local, s.seed);
  flex::whole<float> split = local;
  flex::whole<double> reference{n, n.tokens};
  const double largest = flex::dense(n, local, mask, change, reference);
  const flex::device_calls& calls = calls_of(s);
  calls.local(s, mask, score, local);
  calls.split(s, mask, score, layout, split);

  // fp32 rounds relative to the size of a gradient, and of scores beyond those of unit-normal inputs;
  // outputs are averages of unit-normal values.
  const double tolerance = 2e-6 * std::max(1.0, largest / 16);
  double size = 1;
  for (const flex::array<double>* g : {&reference.dq, &reference.dk, &reference.dv}) {
    for (const double x : g->data) size = std::max(size, std::abs(x));
  }
  std::printf("\n%-56s %9s   %9s\n", "check", "max error", "tolerance");
  bool holds = true;
  holds &= check("local output = dense reference", max_error(local.out, reference.out), tolerance);
  holds &= check("context-parallel output = local output", max_error(split.out, local.out), tolerance);
  holds &=
      check("local gradients = reference's", max_gradient_error(local, reference), tolerance * size);
  holds &= check("context-parallel gradients = reference's", max_gradient_error(split, reference),
                 tolerance * size);
  return holds;
}

} // namespace

int main(int count, char** words) {
  try {
    const command_line line{count, words, known};
    if (line.has("help")) {
      print_help();
      return 0;
    }
    return run(read(line)) ? 0 : 1;
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "flex_attention_cp: %s\n", error.what());
    return 2;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "flex_attention_cp: there is not enough memory\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "flex_attention_cp: %s\n", error.what());
  }
  return 1;
}
