// SPDX-License-Identifier: Apache-2.0
// Attention local and context-parallel, forward and backward, each checked: the job of PyTorch's
// flex_attention_cp example.
#include "checks.hpp"
#include "dense.hpp"
#include "options.hpp"

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

constexpr const char* methods[] = {"ring", "all-gather", "automatic", "ulysses"};
#ifdef MASKRING_WITH_CUDA
constexpr const char* devices[] = {"cpu", "cuda"};
constexpr const char* devices_text = "cpu or cuda: ranks share the GPUs there are (cpu)";
#else
constexpr const char* devices[] = {"cpu"};
constexpr const char* devices_text = "cpu (cpu)";
#endif

constexpr examples::option own_options[] = {
    {"ranks", "N", "over which the sequence is split, threads here (4)"},
    {"score", "SCORE", "how scores are changed before the mask, see below (none)"},
    {"method", "M",
     "how the ranks work together: ring, all-gather, whichever of\n"
     "them suits (automatic), or ulysses (ring)"},
    {"device", "D", devices_text},
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
      command_line::list(flex::with_problem_options(own_options)).c_str(),
      examples::list_names(examples::mask_names).c_str(),
      examples::list_names(examples::score_names).c_str());
}

flex::settings read(const command_line& line) {
  flex::settings s = flex::read_problem(line, static_cast<int>(line.whole("ranks", 4, 1, 256)));
  s.score = line.text("score", s.score);
  s.method = line.one_of("method", methods, s.method);
  s.device = line.one_of("device", devices, s.device);
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
              score ? ", score " : "", score ? s.score.c_str() : "", s.ranks, s.layout.c_str(),
              s.method.c_str(), s.device.c_str(), s.seed);
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

  const flex::tolerances allowed{reference, largest};
  flex::print_check_heading();
  bool holds = true;
  holds &= flex::check("local output = dense reference", max_error(local.out, reference.out),
                       allowed.output);
  holds &= flex::check("context-parallel output = local output", max_error(split.out, local.out),
                       allowed.output);
  holds &= flex::check("local gradients = reference's", max_gradient_error(local, reference),
                       allowed.gradients);
  holds &= flex::check("context-parallel gradients = reference's",
                       max_gradient_error(split, reference), allowed.gradients);
  return holds;
}

} // namespace

int main(int count, char** words) {
  try {
    const auto options = flex::with_problem_options(own_options);
    const command_line line{count, words, options};
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
