// SPDX-License-Identifier: Apache-2.0
// Draws the block map of a mask: which tiles are full, partial and empty, and with ranks, what each
// of them computes in context parallelism.
#include "support/any_mask.hpp"
#include "support/block_svg.hpp"

#include <maskring/block/build.hpp>
#include <maskring/block/text.hpp>
#include <maskring/cp/plan.hpp>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>

namespace {

using namespace maskring;
using examples::any_mask;
using examples::svg;

struct settings {
  std::string mask, layout = "zigzag", method = "ring", file;
  int tokens = 4096, keys = 0, tile = 128, batch = 1, heads = 1, entry = 0, head = 0, ranks = 1;
};

constexpr const char* usage =
    "usage: show_mask MASK [options]\n"
    "  MASK                NAME[:ARG...], joined by & and |, with ! before a name\n"
    "  --tokens N          queries, and keys unless --keys N says otherwise (4096)\n"
    "  --tile N            queries and keys of a tile (128)\n"
    "  --batch N --heads N sizes, of which --entry B --head H is drawn\n"
    "  --ranks N           split the sequence over so many ranks\n"
    "  --layout L          contiguous, zigzag or striped (zigzag)\n"
    "  --method M          ring, all-gather or ulysses (ring)\n"
    "  --svg FILE          write a picture\n"
    "masks:\n";

int whole_number(const std::string& option, const std::string& text, int least) {
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value < least || value > 2147483647L) {
    throw std::invalid_argument(option + " is '" + text + "', expected a number from " +
                                std::to_string(least));
  }
  return static_cast<int>(value);
}

settings read(int count, char** words) {
  settings s;
  for (int i = 1; i < count; ++i) {
    const std::string option = words[i];
    if (option.rfind("--", 0) != 0) {
      if (!s.mask.empty())
        throw std::invalid_argument("one mask is drawn, given also '" + option + "'");
      s.mask = option;
      continue;
    }
    if (i + 1 == count) throw std::invalid_argument(option + " expects a value");
    const std::string value = words[++i];
    if (option == "--tokens")
      s.tokens = whole_number(option, value, 1);
    else if (option == "--keys")
      s.keys = whole_number(option, value, 1);
    else if (option == "--tile")
      s.tile = whole_number(option, value, 1);
    else if (option == "--batch")
      s.batch = whole_number(option, value, 1);
    else if (option == "--heads")
      s.heads = whole_number(option, value, 1);
    else if (option == "--entry")
      s.entry = whole_number(option, value, 0);
    else if (option == "--head")
      s.head = whole_number(option, value, 0);
    else if (option == "--ranks")
      s.ranks = whole_number(option, value, 1);
    else if (option == "--layout")
      s.layout = value;
    else if (option == "--method")
      s.method = value;
    else if (option == "--svg")
      s.file = value;
    else
      throw std::invalid_argument("no option is called " + option);
  }
  if (s.mask.empty()) throw std::invalid_argument("which mask? --help lists them");
  if (s.keys == 0) s.keys = s.tokens;
  if (s.entry >= s.batch || s.head >= s.heads) {
    throw std::invalid_argument("--entry and --head are beyond --batch and --heads");
  }
  if (s.method != "ring" && s.method != "all-gather" && s.method != "ulysses") {
    throw std::invalid_argument("--method is '" + s.method +
                                "', expected ring, all-gather or ulysses");
  }
  return s;
}

double share(const block_map& map) { return 100.0 - map.sparsity(); }

std::string percent(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f%%", x);
  return text;
}

void legend(svg& picture, double x, double y) {
  const std::pair<const char*, const char*> kinds[] = {
      {svg::full, "full"}, {svg::partial, "partial"}, {"#ffffff", "empty"}};
  for (const auto& [fill, word] : kinds) {
    picture.rectangle(x, y - 9, 10, 10, fill, svg::ink);
    picture.text(x + 15, y, word);
    x += 62;
  }
}

// The whole map, as one device sees it.
std::string draw_whole(const settings& s, const any_mask& mask, svg& picture) {
  const block_map map =
      make_block_map(mask, {s.batch, s.heads, s.tokens, s.keys}, {s.tile, s.tile});
  std::cout << to_string(map, s.entry, s.head);
  std::cout << map.count(verdict::all) << " full, " << map.count(verdict::some) << " partial, "
            << map.count(verdict::none) << " empty tiles; " << map.rows().runs.size() << " runs, "
            << map.bytes() << " bytes\n";
  const double w = 480, h = std::max(60.0, 480.0 * s.tokens / s.keys);
  picture.text(20, 22, s.mask, "start", 14);
  picture.text(20, 40,
               std::to_string(s.tokens) + " queries down, " + std::to_string(s.keys) +
                   " keys across, tiles of " + std::to_string(s.tile) + ": " + percent(share(map)) +
                   " of the tiles computed");
  picture.map(20, 52, w, h, map.view(), s.entry, s.head);
  double bottom = 52 + h + 22;
  legend(picture, 20, bottom);
  if (s.ranks > 1) { // ulysses: all ranks hold this map
    for (int r = 0; r < s.ranks; ++r) {
      const int first = s.heads * r / s.ranks, last = s.heads * (r + 1) / s.ranks - 1;
      bottom += 18;
      const std::string line =
          "rank " + std::to_string(r) +
          (first <= last ? ": heads " + std::to_string(first) + " to " + std::to_string(last)
                         : ": no head") +
          ", the whole sequence";
      picture.text(20, bottom, line);
      std::cout << line << '\n';
    }
  }
  return picture.finish(w + 40, bottom + 16);
}

// A rank's queries against a shard of keys (ring), or against all of them (all-gather).
template <class Layout>
std::string draw_ranks(const settings& s, const any_mask& mask, svg& picture) {
  const Layout queries{s.tokens, s.ranks}, keys{s.keys, s.ranks};
  const cp::shape sizes{
      .batch = s.batch, .q_heads = s.heads, .kv_heads = s.heads, .qk_dim = 64, .v_dim = 64};
  const cp::plan plan{mask, sizes, cp::shards<Layout, Layout>{queries, keys}};
  const bool ring = s.method == "ring";
  const double cell = std::max(70.0, 480.0 / s.ranks), left = 76, top = 74;
  picture.text(20, 22, s.mask + ", " + std::to_string(s.ranks) + " ranks, " + s.layout, "start",
               14);
  picture.text(20, 40,
               std::string{ring
                               ? "keys travel round a ring; the number is the step at which a rank "
                                 "meets the shard"
                               : "each rank gathers the keys that it needs"});
  for (int shard = 0; shard < s.ranks; ++shard) {
    picture.text(left + cell * (shard + 0.5), top - 8, "keys of " + std::to_string(shard),
                 "middle");
  }
  double done = 0;
  std::vector<double> work(static_cast<std::size_t>(s.ranks));
  for (int rank = 0; rank < s.ranks; ++rank) {
    const double y = top + cell * rank;
    picture.text(left - 8, y + cell / 2 + 4, "rank " + std::to_string(rank), "end");
    for (int shard = 0; shard < s.ranks; ++shard) {
      const double x = left + cell * shard;
      const int step = (rank - shard + s.ranks) % s.ranks;
      if (plan.needed(rank, shard).empty()) {
        picture.rectangle(x, y, cell - 3, cell - 3, svg::shade, svg::ink);
        picture.line(x, y, x + cell - 3, y + cell - 3, svg::ink);
        picture.line(x + cell - 3, y, x, y + cell - 3, svg::ink);
        continue;
      }
      const block_map map = make_block_map(shard::rewrite(mask, queries.map(rank), keys.map(shard)),
                                           {s.batch, s.heads, queries.size(rank), keys.size(shard)},
                                           {s.tile, s.tile});
      picture.map(x, y, cell - 3, cell - 3, map.view(), s.entry, s.head);
      if (ring) {
        picture.rectangle(x + cell - 19, y + 2, 14, 14, "#ffffff", svg::ink);
        picture.text(x + cell - 12, y + 13, std::to_string(step), "middle");
      }
      const double tiles = share(map) * static_cast<double>(map.tiles());
      work[static_cast<std::size_t>(rank)] += tiles;
      done += tiles;
    }
  }
  double bottom = top + cell * s.ranks + 22;
  legend(picture, left, bottom);
  picture.rectangle(left + 186, bottom - 9, 10, 10, svg::shade, svg::ink);
  picture.line(left + 186, bottom - 9, left + 196, bottom + 1, svg::ink);
  picture.line(left + 196, bottom - 9, left + 186, bottom + 1, svg::ink);
  picture.text(left + 201, bottom, ring ? "step skipped" : "not gathered");

  // Who works when, on what, and how much of the average.
  bottom += 26;
  for (int step = 0; ring && step < s.ranks; ++step) {
    picture.text(left + cell * (step + 0.5), bottom, "step " + std::to_string(step), "middle");
  }
  for (int rank = 0; rank < s.ranks; ++rank) {
    const double y = bottom + 6 + 20.0 * rank;
    picture.text(left - 8, y + 14, "rank " + std::to_string(rank), "end");
    std::string line = "rank " + std::to_string(rank) + ":";
    for (int step = 0; step < s.ranks; ++step) {
      const int shard = ring ? plan.shard_at(rank, step) : step;
      const bool skipped = plan.needed(rank, shard).empty();
      const double x = left + cell * step;
      picture.rectangle(x, y, cell - 3, 18, skipped ? svg::shade : svg::partial, svg::ink);
      picture.text(x + cell / 2, y + 13, skipped ? "skipped" : "keys of " + std::to_string(shard),
                   "middle");
      line += skipped ? " -" : ' ' + std::to_string(shard);
    }
    const double part = done > 0 ? 100 * work[static_cast<std::size_t>(rank)] * s.ranks / done : 0;
    picture.text(left + cell * s.ranks + 4, y + 13, percent(part));
    std::cout << line << "   work " << percent(part) << " of the average\n";
  }
  bottom += 20.0 * s.ranks + 24;
  const cp::savings saved = plan.saved(sizes, 2);
  const double traffic = saved.unplanned_forward_bytes == 0
                             ? 100.0
                             : 100.0 * static_cast<double>(saved.forward_bytes) /
                                   static_cast<double>(saved.unplanned_forward_bytes);
  const std::string summary = std::to_string(saved.steps) + " of " +
                              std::to_string(saved.possible_steps) + " steps computed, " +
                              percent(traffic) +
                              " of the forward traffic sent; right: work beside the average";
  picture.text(20, bottom, summary);
  std::cout << summary.substr(0, summary.find(';')) << '\n';
  return picture.finish(left + cell * s.ranks + 66, bottom + 16);
}

std::string draw(const settings& s) {
  examples::mask_library masks{{s.batch, s.heads, s.tokens, s.keys}};
  const any_mask mask = masks(s.mask);
  svg picture;
  if (s.ranks == 1 || s.method == "ulysses") return draw_whole(s, mask, picture);
  if (s.layout == "contiguous") return draw_ranks<shard::contiguous>(s, mask, picture);
  if (s.layout == "zigzag") return draw_ranks<shard::zigzag>(s, mask, picture);
  if (s.layout == "striped") return draw_ranks<shard::striped>(s, mask, picture);
  throw std::invalid_argument("--layout is '" + s.layout +
                              "', expected contiguous, zigzag or striped");
}

} // namespace

int main(int count, char** words) {
  try {
    if (count == 2 && std::string{words[1]} == "--help") {
      std::cout << usage << examples::list_names(examples::mask_names);
      return 0;
    }
    const settings s = read(count, words);
    const std::string picture = draw(s);
    if (!s.file.empty()) {
      std::ofstream out{s.file};
      out << picture;
      if (!out.flush()) throw std::runtime_error("cannot write " + s.file);
    }
    return 0;
  } catch (const std::exception& e) {
    std::cerr << "show_mask: " << e.what() << '\n';
    return 2;
  }
}
