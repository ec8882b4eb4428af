// SPDX-License-Identifier: Apache-2.0
// Writes docs/masks.md and its pictures from the functors themselves, and tells whether they are
// stale.
#include "../tests/support/mask_audit.hpp"
#include "support/block_svg.hpp"
#include "support/mask_names.hpp"
#include "support/score_names.hpp"
#include "support/tables.hpp"

#include <maskring/block/build.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>

namespace {

using namespace maskring;
using examples::named_entry;
using examples::svg;

/// Why a mask's verdicts are not exact, for those that are not.
const std::map<std::string, std::string> reasons = {
    {"global_window", "a window and flags that fill a tile only together"},
    {"dilated_window", "queries of one stride against keys of another"},
    {"same_id", "only the least and greatest id of a range are known"},
    {"neighbourhood", "a stride that does not divide the width is widened to an interval"},
    {"tiled_neighbourhood", "as for rows, where the stride does not divide the tile's width"},
    {"morton_neighbourhood", "strides are widened to intervals"},
    {"temporal_head", "a stride that does not divide the frame is widened to an interval"},
    {"composed", "parts that fill or miss a tile only together"},
    {"branching", "knows nothing of ranges: every tile is classified by its elements"},
};

std::string contents(const std::filesystem::path& file) {
  std::ifstream in{file, std::ios::binary};
  if (!in) throw std::runtime_error("cannot read " + file.string());
  return {std::istreambuf_iterator<char>{in}, {}};
}

/// The first call operator of a class, as it stands in its header.
std::string code_of(const std::filesystem::path& include, const named_entry& entry) {
  const std::string text = contents(include / entry.header);
  std::size_t at = std::string::npos;
  for (const char* word : {"class ", "struct "}) {
    for (const char* next : {" {", "\n"}) {
      at = std::min(at, text.find('\n' + std::string{word} + entry.type + next));
    }
  }
  at = at == std::string::npos ? at : text.find("operator()(", at);
  if (at == std::string::npos) {
    throw std::runtime_error(std::string{entry.header} + " has no " + entry.type + " to show");
  }
  std::size_t begin = text.rfind('\n', at) + 1;
  const std::size_t above = text.rfind('\n', begin - 2) + 1;
  if (text.compare(above, 11, "  template ") == 0) begin = above;
  std::size_t end = text.find('{', at);
  for (int depth = 1; depth > 0;) {
    const char c = text[++end];
    depth += c == '{' ? 1 : c == '}' ? -1 : 0;
  }
  std::istringstream lines{text.substr(begin, end + 1 - begin)};
  std::string out;
  for (std::string line; std::getline(lines, line);) {
    out += (line.compare(0, 2, "  ") == 0 ? line.substr(2) : line) + '\n';
  }
  return out;
}

/// Everything that is written, by its path below docs/.
using files = std::map<std::string, std::string>;

constexpr int picture_tokens = 1024, picture_tile = 16, picture_pixels = 256;

template <class Mask>
std::string picture_of(const Mask& mask) {
  const block_map map =
      make_block_map(mask, {1, 1, picture_tokens, picture_tokens}, {picture_tile, picture_tile});
  svg picture;
  picture.map(1, 1, picture_pixels, picture_pixels, map.view(), 0, 0);
  return picture.finish(picture_pixels + 2, picture_pixels + 2);
}

/// What a score of 0 becomes, in nine shades; for a modifier of the score alone, its curve.
template <class Score>
std::string picture_of_score(const Score& score, int tokens) {
  constexpr int levels = 9;
  const char* shades[levels] = {"#08519c", "#3182bd", "#6baed6", "#bdd7e7", "#f7f7f7",
                                "#fcbba1", "#fb6a4a", "#de2d26", "#a50f15"};
  svg picture;
  const auto value = [&](int q, int kv) { return std::round(score(0.0, 0, 1, q, kv) * 1e4) / 1e4; };
  double most = 0;
  for (int q = 0; q < tokens; ++q) {
    for (int kv = 0; kv < tokens; ++kv) most = std::max(most, std::abs(value(q, kv)));
  }
  picture.rectangle(1, 1, picture_pixels, picture_pixels, "#ffffff", svg::ink);
  if (most == 0) {
    double x0 = 0, y0 = 0;
    for (int i = 0; i <= 64; ++i) {
      const double s = i * 2.0 - 64, y = std::round((129 - 2 * score(s, 0, 1, 0, 0)) * 10) / 10;
      if (i > 0) picture.line(x0, y0, 1 + i * 4.0, y, svg::full);
      x0 = 1 + i * 4.0;
      y0 = y;
    }
    picture.line(129, 1, 129, 257, svg::shade);
    picture.line(1, 129, 257, 129, svg::shade);
  }
  std::array<std::ostringstream, levels> runs;
  for (int q = 0; q < tokens && most > 0; ++q) {
    const auto level = [&](int kv) {
      return static_cast<std::size_t>((value(q, kv) / most + 1) / 2 * levels * 0.9999);
    };
    for (int kv = 0; kv < tokens;) {
      int end = kv + 1;
      while (end < tokens && level(end) == level(kv)) ++end;
      runs[level(kv)] << 'M' << kv << ' ' << q << 'h' << end - kv << "v1h" << kv - end << 'z';
      kv = end;
    }
  }
  for (std::size_t level = 0; level < levels; ++level) {
    picture.path(1, 1, double{picture_pixels} / tokens, runs[level].str(), shades[level]);
  }
  return picture.finish(picture_pixels + 2, picture_pixels + 2);
}

struct audited {
  testing::layout_audits counts;
  index_t tiles = 0, partial = 0;
};

/// Tiles of 64 and 128 of two lengths that are multiples of nothing, for four ranks.
audited audit_of(const named_entry& entry) {
  audited sum;
  for (int tokens : {701, 1501}) {
    examples::host_tables keep;
    const examples::mask_shape shape{1, 1, tokens, tokens};
    with_mask(entry.name, shape, keep, [&](const auto& mask, const char*) {
      const testing::dense_mask truth{{1, 1, tokens, tokens}, mask};
      for (int tile : {64, 128}) {
        const testing::layout_audits counts = testing::audit_layouts(mask, truth, tile, 4);
        sum.counts.whole += counts.whole;
        sum.counts.contiguous += counts.contiguous;
        sum.counts.zigzag += counts.zigzag;
        sum.counts.striped += counts.striped;
      }
    });
  }
  const testing::audit all = sum.counts.all();
  if (all.unsound > 0) throw std::runtime_error(std::string{entry.name} + " has unsound verdicts");
  sum.tiles = all.tiles;
  sum.partial = all.partial;
  return sum;
}

std::string share_of(const testing::audit& a) {
  if (a.loose == 0) return "0";
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %%",
                100.0 * static_cast<double>(a.loose) / static_cast<double>(a.tiles));
  return text;
}

std::string entry_text(const named_entry& entry, const std::string& code, const std::string& made,
                       const std::string& folder) {
  const std::string name = entry.name;
  return "### " + name + "\n\n" + entry.definition + "\n\n<img src=\"" + folder + '/' + name +
         ".svg\" align=\"right\" width=\"200\" alt=\"" + name + "\">\n\n```cpp\n" + made +
         ";  // maskring/" + entry.header + "\n```\n```cpp\n" + code +
         "```\n<br clear=\"right\">\n\n";
}

constexpr const char* introduction = R"(# Masks and score modifiers

<!-- Written by examples/mask_gallery.cpp from the functors themselves. Edit that, not this. -->

A mask is a functor of batch entry, head, query and key that says which scores to keep. The library
evaluates it over numbers, and over ranges of them to decide whole tiles at once. Masks that are
shipped are below, each with its definition (`//` is floor division, `%` its remainder; true is
keep), the expression that makes it, its code and its picture: 1,024 queries down and keys across
in tiles of 16, dark where a tile is full, light where it is partial, white where it is empty and
never visited. `show_mask NAME[:ARG...] --svg FILE` draws any of them at any size, and with
`--ranks` what each rank computes of it.

Masks combine with `&`, `|` and `!`; `mask::shift` moves them, `mask::batched` and `mask::document`
repeat them in segments. A mask of your own is as short:

```cpp
#include <maskring/maskring.hpp>

struct every_other {  // the diagonals at an even distance, looking back
  constexpr auto operator()(auto, auto, auto q, auto kv) const {
    return (q >= kv) & ((q - kv) % 2 == 0);
  }
};

int main() {
  namespace mr = maskring;
  const auto mask = every_other{} | mr::mask::prefix_lm{16};
  static_assert(mr::classifiable_mask<every_other>);
  const mr::block_map map = mr::make_block_map(mask, {1, 1, 1000, 1000}, {64, 64});
  return map.count(mr::verdict::none) > 0 ? 0 : 1;
}
```

Tables that masks read (ids, flags, lengths, blocks) are owned by objects on the host, which check
them when they are made and know the least and greatest entry of any range; masks hold views of
them. `cuda::device_table` makes the view of a copy in device memory.

)";

constexpr const char* score_introduction = R"(## Score modifiers

A score modifier gets the scaled score and returns the new one, before the mask. Evaluated over a
dual number it gives its own derivative. Modifiers follow one another with `>>`. Those with tables
that learn (`learnable_score`) are handed the gradient of every kept score in the backward pass and
add to sums that do not depend on the order (`score::exact_sum`); with context parallelism each rank
adds its part, and `cp::sum_over_ranks` makes the whole of the parts
([guide](guide.md#learning)). A logit for each head that joins the softmax's denominator is no
modifier: see `inputs::with_sink`.

Pictures: what a score of 0 becomes, for the second of four heads and 32 queries and keys, blue
below and red above; for `none` and `softcap` the curve from -64 to 64.

)";

constexpr const char* audit_introduction = R"(## How exact the verdicts are

A verdict of `none` or `all` is a proof; `some` may also mean that the ranges do not tell. Below,
every tile of 64 and of 128 of two sequences (701 and 1,501 tokens) was also decided by its elements:
whole, and split over four ranks in each layout, with the keys split too and with gathered keys. No
verdict was wrong. The columns give the share of tiles that were called `some` and were not, by
layout: such a tile is computed with its mask, or computed in vain, and never wrong. Partial tiles
are those that are truly `some`.

| mask | tiles | partial | whole | contiguous | zigzag | striped | why |
|---|--:|--:|--:|--:|--:|--:|---|
)";

files write_all(const std::filesystem::path& root) {
  const auto include = root / "include" / "maskring";
  files out;
  std::string page = introduction + std::string{"## Masks\n\n"}, table = audit_introduction;
  for (const named_entry& entry : examples::mask_names) {
    examples::host_tables keep;
    const examples::mask_shape shape{1, 1, picture_tokens, picture_tokens};
    const std::string code =
        std::string{entry.name} == "branching"
            ? code_of(root / "examples" / "support", {"", "", "", "branching", "mask_names.hpp"})
            : code_of(include, entry);
    with_mask(entry.name, shape, keep, [&](const auto& mask, const char* made) {
      out["masks/" + std::string{entry.name} + ".svg"] = picture_of(mask);
      page += entry_text(entry, code, made, "masks");
    });
    const audited counts = audit_of(entry);
    const bool loose = counts.counts.all().loose > 0;
    const auto reason = reasons.find(entry.name);
    if (loose && reason == reasons.end()) {
      throw std::runtime_error(std::string{entry.name} + " is loose, and no reason is given");
    }
    table += "| " + std::string{entry.name} + " | " + std::to_string(counts.tiles) + " | " +
             std::to_string(100 * counts.partial / counts.tiles) + " % | " +
             share_of(counts.counts.whole) + " | " + share_of(counts.counts.contiguous) + " | " +
             share_of(counts.counts.zigzag) + " | " + share_of(counts.counts.striped) + " | " +
             (loose ? reason->second : "") + " |\n";
  }
  page += score_introduction;
  constexpr int tokens = 32;
  for (const named_entry& entry : examples::score_names) {
    examples::host_tables keep;
    with_score(entry.name, {1, 4, tokens, tokens}, keep, [&](const auto& score, const char* made) {
      out["masks/" + std::string{entry.name} + ".svg"] = picture_of_score(score, tokens);
      page += entry_text(entry, code_of(include, entry), made, "masks");
    });
  }
  out["masks.md"] = page + table;
  return out;
}

} // namespace

int main(int count, char** words) {
  try {
    const bool check = count == 3 && std::string{words[2]} == "--check";
    if (count != 2 && !check) {
      std::cerr << "usage: mask_gallery SOURCE_ROOT [--check]\n"
                   "writes docs/masks.md and docs/masks/*.svg, or tells which of them are stale\n";
      return 2;
    }
    const std::filesystem::path root{words[1]}, docs = root / "docs";
    int stale = 0;
    for (const auto& [name, text] : write_all(root)) {
      if (check) {
        if (!std::filesystem::exists(docs / name) || contents(docs / name) != text) {
          std::cout << "stale: docs/" << name << '\n';
          ++stale;
        }
        continue;
      }
      std::filesystem::create_directories((docs / name).parent_path());
      std::ofstream out{docs / name, std::ios::binary};
      out << text;
      if (!out.flush()) throw std::runtime_error("cannot write docs/" + name);
    }
    if (stale > 0) std::cout << "run mask_gallery " << root.string() << '\n';
    return stale > 0 ? 1 : 0;
  } catch (const std::exception& e) {
    std::cerr << "mask_gallery: " << e.what() << '\n';
    return 2;
  }
}
