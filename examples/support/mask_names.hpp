// SPDX-License-Identifier: Apache-2.0
// Every shipped mask by name: "NAME[:ARG…]" to the mask itself, with its concrete type.
#pragma once

#include "words.hpp"

#include <maskring/mask/basic.hpp>
#include <maskring/mask/batched.hpp>
#include <maskring/mask/block_diffusion.hpp>
#include <maskring/mask/block_sparse.hpp>
#include <maskring/mask/compose.hpp>
#include <maskring/mask/cross_intervals.hpp>
#include <maskring/mask/document.hpp>
#include <maskring/mask/lengths.hpp>
#include <maskring/mask/neighbourhood.hpp>
#include <maskring/mask/shared_prefix.hpp>
#include <maskring/mask/sliding_tile.hpp>
#include <maskring/mask/tree.hpp>
#include <maskring/mask/video_heads.hpp>
#include <maskring/mask/window.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace examples {

/// What a mask is made for.
struct mask_shape {
  int batch = 1, heads = 1, q_len = 0, kv_len = 0;
};

inline constexpr named_entry mask_names[] = {
    {"full", "", "always", "full", "mask/basic.hpp"},
    {"causal", "", "q ≥ kv", "causal", "mask/basic.hpp"},
    {"sliding_window", "[:WIDTH]", "q ≥ kv and q − kv ≤ width", "sliding_window", "mask/basic.hpp"},
    {"attention_sink", "[:WIDTH:SINKS]", "q ≥ kv and (q − kv ≤ width or kv < sinks)",
     "attention_sink", "mask/window.hpp"},
    {"dilated_window", "[:WIDTH:DILATION]", "|q − kv| ≤ width and |q − kv| % dilation = 0",
     "dilated_window", "mask/window.hpp"},
    {"global_window", "[:WIDTH:EVERY]",
     "|q − kv| ≤ width or flag[q] or flag[kv], every EVERY-th token flagged", "global_window",
     "mask/window.hpp"},
    {"prefix_lm", "[:LENGTH]", "kv < length or q ≥ kv", "prefix_lm", "mask/basic.hpp"},
    {"batch_prefix_lm", "[:LENGTH]", "kv < length[b] or q ≥ kv", "batch_prefix_lm",
     "mask/lengths.hpp"},
    {"key_padding", "[:LENGTH]", "kv < length[b]", "key_padding", "mask/lengths.hpp"},
    {"document", "[:MEAN]", "doc[q] = doc[kv], documents of MEAN tokens", "document",
     "mask/document.hpp"},
    {"document_causal", "[:MEAN]", "doc[q] = doc[kv] and q ≥ kv", "document", "mask/document.hpp"},
    {"shared_prefix", "[:MEAN:ANSWERS]",
     "own document and q ≥ kv, or the document that it continues", "shared_prefix",
     "mask/shared_prefix.hpp"},
    {"same_id", "[:RUN:IDS]", "id[q] = id[kv], ids in any order", "same_id", "mask/lengths.hpp"},
    {"batched", "[:LENGTH]", "q // n = kv // n and inner(q % n, kv % n), here causal", "batched",
     "mask/batched.hpp"},
    {"block_diffusion", "[:BLOCK]",
     "(bq = bk, both in one half) or (bq > bk, q noised, kv clean) or (bq ≥ bk, both clean)",
     "block_diffusion", "mask/block_diffusion.hpp"},
    {"tree", "[:PREFIX]", "kv < prefix or kv − prefix is q or an ancestor of q", "tree",
     "mask/tree.hpp"},
    {"tree_training", "[:PREFIX:BRANCH]",
     "kv < p or (q // n = (kv − p) // n and (kv − p) % n ≤ q % n)", "tree_training",
     "mask/tree.hpp"},
    {"cross_intervals", "[:IMAGE_TOKENS]", "first[i] ≤ q < last[i], i = kv // image_tokens",
     "cross_intervals", "mask/cross_intervals.hpp"},
    {"neighbourhood", "[:WIDTH:KERNEL]",
     "|cx − kx| ≤ kernel.x // 2 and |cy − ky| ≤ kernel.y // 2, pixels row by row", "neighbourhood",
     "mask/neighbourhood.hpp"},
    {"tiled_neighbourhood", "[:WIDTH:KERNEL]", "the same, pixels in tiles of 8 × 8",
     "neighbourhood", "mask/neighbourhood.hpp"},
    {"morton_neighbourhood", "[:KERNEL]", "the same, pixels along the Z-curve", "neighbourhood",
     "mask/neighbourhood.hpp"},
    {"sliding_tile", "[:TILE:WINDOW:TEXT]",
     "a window of tiles around the query's on both axes; text sees and is seen", "sliding_tile",
     "mask/sliding_tile.hpp"},
    {"sliding_tile_3d", "[:TILE:WINDOW:TEXT]", "the same on three axes", "sliding_tile",
     "mask/sliding_tile.hpp"},
    {"spatial_head", "[:PROMPT:WIDTH:FRAME]", "kv < p or q < p or |q − kv| < width frames",
     "spatial_head", "mask/video_heads.hpp"},
    {"temporal_head", "[:PROMPT:WIDTH:FRAME]",
     "kv < p or q < p or |(q − p) % t − (kv − p) % t| < width · t // frames", "temporal_head",
     "mask/video_heads.hpp"},
    {"block_table", "[:BLOCK:PERCENT]", "table[b, h, q // block, kv // block]", "block_table",
     "mask/block_sparse.hpp"},
    {"block_topk", "[:BLOCK:K]", "kv // block ∈ topk[b, h, q // block]", "block_table",
     "mask/block_sparse.hpp"},
    {"composed", "[:WIDTH:PREFIX]",
     "prefix_lm & (sliding_window | !causal | batched causal): masks made of masks", "both",
     "mask/compose.hpp"},
    {"branching", "[:PERIOD]", "(q · kv) % period < period // 2: only by its elements",
     "elementwise", "mask/compose.hpp"},
};

/// A mask as its author may write it, with a branch: it can be asked about elements only.
struct branching {
  int period;
  constexpr bool operator()(int, int, int q, int kv) const {
    if (q < kv) return false;
    return static_cast<int>(static_cast<long long>(q) * kv % period) < period / 2;
  }
  friend constexpr bool operator==(branching, branching) = default;
};

namespace detail {

inline std::vector<int> document_lengths(int tokens, int mean) {
  dice roll;
  std::vector<int> lengths;
  for (int left = tokens; left > 0; left -= lengths.back()) {
    lengths.push_back(std::min(left, mean / 2 + 1 + roll(mean)));
  }
  return lengths;
}
inline std::vector<int> batch_lengths(int batch, int length) {
  std::vector<int> lengths;
  for (int b = 0; b < batch; ++b) lengths.push_back(length - length * b / (2 * batch));
  return lengths;
}
inline int root(int tokens) {
  int side = 1;
  while (side * side < tokens) ++side;
  return side;
}
inline int round_up(int x, int step) { return (x + step - 1) / step * step; }

} // namespace detail

/// Makes the mask that `text` names and returns visit(mask, code), where `code` is the expression
/// that made it. `keep` (host_tables, or its like for a device) keeps its tables.
/// @throws std::invalid_argument for unknown names and bad arguments.
template <class Keeper, class Visit>
auto with_mask(const std::string& text, const mask_shape& shape, Keeper& keep, Visit&& visit) {
  namespace mask = maskring::mask;
  using detail::round_up;
#define EXAMPLES_VISIT(...) return arguments.finish(), visit(__VA_ARGS__, #__VA_ARGS__)
  words arguments{text};
  const std::string& name = arguments.name();
  const int tokens = std::max(shape.q_len, shape.kv_len);
  dice roll;

  if (name == "full") EXAMPLES_VISIT(mask::full{});
  if (name == "causal") EXAMPLES_VISIT(mask::causal{});
  if (name == "sliding_window") {
    const int width = arguments.integer("width", tokens / 8);
    EXAMPLES_VISIT(mask::sliding_window{width});
  }
  if (name == "attention_sink") {
    const int width = arguments.integer("width", tokens / 8);
    const int sinks = arguments.integer("sinks", tokens / 32);
    EXAMPLES_VISIT(mask::attention_sink{width, sinks});
  }
  if (name == "dilated_window") {
    const int width = arguments.integer("width", tokens / 4);
    const int dilation = arguments.integer("dilation", std::max(1, tokens / 32));
    EXAMPLES_VISIT(mask::dilated_window{width, dilation});
  }
  if (name == "global_window") {
    const int width = arguments.integer("width", tokens / 16);
    const int every = std::max(1, arguments.integer("every", tokens / 5));
    std::vector<int> flags;
    for (int i = 0; i < tokens; ++i) flags.push_back(i % every == 0);
    const auto table = keep(mask::int_table{flags, tokens});
    EXAMPLES_VISIT(mask::global_window{width, table});
  }
  if (name == "prefix_lm") {
    const int length = arguments.integer("length", tokens / 4);
    EXAMPLES_VISIT(mask::prefix_lm{length});
  }
  if (name == "batch_prefix_lm" || name == "key_padding") {
    const int length =
        arguments.integer("length", name == "key_padding" ? tokens * 3 / 4 : tokens / 4);
    const auto table =
        keep(mask::int_table{detail::batch_lengths(shape.batch, length), shape.batch});
    if (name == "key_padding") EXAMPLES_VISIT(mask::key_padding{table});
    EXAMPLES_VISIT(mask::batch_prefix_lm{table});
  }
  if (name == "document" || name == "document_causal") {
    const int mean = std::max(1, arguments.integer("mean", tokens / 6));
    const auto docs =
        keep(mask::document_table::from_lengths(detail::document_lengths(tokens, mean)));
    if (name == "document") EXAMPLES_VISIT(mask::document{docs});
    EXAMPLES_VISIT(mask::document{docs, mask::causal{}});
  }
  if (name == "shared_prefix") {
    const int mean = std::max(1, arguments.integer("mean", tokens / 10));
    const int answers = std::max(1, arguments.integer("answers", 3));
    const auto lengths = detail::document_lengths(tokens, mean);
    std::vector<int> continued;
    for (int d = 0; d < static_cast<int>(lengths.size()); ++d) {
      continued.push_back(d / (answers + 1) * (answers + 1));
    }
    const auto docs = keep(mask::document_table::from_lengths(lengths));
    const auto prefix = keep(mask::int_table{continued, static_cast<int>(lengths.size())});
    EXAMPLES_VISIT(mask::shared_prefix{docs, prefix});
  }
  if (name == "same_id") {
    const int run = std::max(1, arguments.integer("run", tokens / 16));
    const int groups = std::max(1, arguments.integer("ids", 4));
    std::vector<int> ids;
    for (int i = 0; i < tokens; ++i) ids.push_back(i % run == 0 ? roll(groups) : ids.back());
    const auto table = keep(mask::int_table{ids, tokens});
    EXAMPLES_VISIT(mask::same_id{table});
  }
  if (name == "batched") {
    const int length = arguments.integer("length", std::max(1, tokens / 4));
    EXAMPLES_VISIT(mask::batched{mask::causal{}, length});
  }
  if (name == "block_diffusion") {
    const int block = arguments.integer("block", std::max(1, tokens / 16));
    const int length = std::max(1, (tokens + 1) / 2);
    EXAMPLES_VISIT(mask::block_diffusion{length, block});
  }
  if (name == "tree" || name == "tree_training") {
    const int prefix = arguments.integer(
        "prefix", shape.kv_len > shape.q_len ? shape.kv_len - shape.q_len : tokens / 8);
    if (name == "tree_training") {
      const int branch = arguments.integer("branch", std::max(1, tokens / 6));
      EXAMPLES_VISIT(mask::tree_training{prefix, branch});
    }
    std::vector<int> parents{-1};
    while (static_cast<int>(parents.size()) < std::min(shape.q_len, 4096)) {
      const int node = static_cast<int>(parents.size()),
                near = std::min(node, 1 + shape.q_len / 10);
      parents.push_back(node - 1 - roll(near));
    }
    const auto tree = keep(mask::ancestors(parents));
    EXAMPLES_VISIT(mask::tree{prefix, tree});
  }
  if (name == "cross_intervals") {
    const int image = std::max(1, arguments.integer("image_tokens", tokens / 12));
    std::vector<int> begins, ends;
    const int images = (shape.kv_len + image - 1) / image;
    for (int i = 0; i < images; ++i) {
      begins.push_back(static_cast<int>(1LL * shape.q_len * i / (images + 2)));
      ends.push_back(begins.back() + shape.q_len / 6 + roll(shape.q_len / 4 + 1));
    }
    const auto first = keep(mask::int_table{begins, images}),
               last = keep(mask::int_table{ends, images});
    EXAMPLES_VISIT(mask::cross_intervals{first, last, image});
  }
  if (name == "neighbourhood" || name == "tiled_neighbourhood") {
    const bool tiled = name == "tiled_neighbourhood";
    const int asked = arguments.integer("width", detail::root(tokens));
    const int width = std::max(1, tiled ? round_up(asked, 8) : asked);
    const int height = round_up((tokens + width - 1) / width, tiled ? 8 : 1);
    const int kernel = arguments.integer("kernel", std::min({width, height, width / 8 * 2 + 1}));
    if (tiled) {
      EXAMPLES_VISIT(
          mask::neighbourhood{mask::tiled_order{{width, height}, {8, 8}}, {kernel, kernel}});
    }
    EXAMPLES_VISIT(mask::neighbourhood{mask::row_order{{width, height}}, {kernel, kernel}});
  }
  if (name == "morton_neighbourhood") {
    int side = 1;
    while (side < detail::root(tokens)) side *= 2;
    const int kernel = arguments.integer("kernel", std::min(side, side / 8 * 2 + 1));
    EXAMPLES_VISIT(mask::neighbourhood{mask::morton_order{side}, {kernel, kernel}});
  }
  if (name == "sliding_tile" || name == "sliding_tile_3d") {
    const bool video = name == "sliding_tile_3d";
    const int tile = std::max(1, arguments.integer("tile", std::max(1, tokens / 64)));
    const int window = arguments.integer("window", 3);
    const int tiles = std::max(1, tokens * 15 / 16 / tile);
    if (video) {
      const int side = std::max(window, static_cast<int>(std::sqrt(tiles / std::max(1, window))));
      const int depth = std::max(window, tiles / (side * side));
      const int text = arguments.integer("text", std::max(0, tokens - side * side * depth * tile));
      EXAMPLES_VISIT(mask::sliding_tile{{side, side, depth}, {window, window, window}, tile, text});
    }
    const int across = std::max(window, detail::root(tiles)),
              down = std::max(window, tiles / across);
    const int text = arguments.integer("text", std::max(0, tokens - across * down * tile));
    EXAMPLES_VISIT(mask::sliding_tile{{across, down}, {window, window}, tile, text});
  }
  if (name == "spatial_head" || name == "temporal_head") {
    const int prompt = arguments.integer("prompt", tokens / 16);
    const double width = arguments.number("width", name == "spatial_head" ? 1.5 : 2.0);
    const int frame = std::max(1, arguments.integer("frame", tokens / 10));
    const int frames = std::max(1, (tokens - prompt) / frame);
    if (name == "spatial_head") EXAMPLES_VISIT(mask::spatial_head{prompt, width, frame});
    EXAMPLES_VISIT(mask::temporal_head{prompt, width, frame, frames});
  }
  if (name == "block_table" || name == "block_topk") {
    const int block = std::max(1, arguments.integer("block", std::max(1, tokens / 32)));
    const mask::block_table_shape blocks{shape.batch, shape.heads,
                                         (shape.q_len + block - 1) / block,
                                         (shape.kv_len + block - 1) / block};
    const maskring::index_t rows = blocks.batch * blocks.heads * blocks.rows;
    if (name == "block_topk") {
      const int k =
          arguments.integer("k", static_cast<int>(std::max<long long>(1, blocks.columns / 8)));
      std::vector<int> chosen;
      for (maskring::index_t i = 0; i < rows * k; ++i) chosen.push_back(roll(blocks.columns));
      const auto topk = keep(mask::topk_bits(blocks, chosen, k));
      EXAMPLES_VISIT(mask::block_table{topk, blocks, block});
    }
    const int percent = arguments.integer("percent", 25);
    std::vector<std::uint8_t> flags;
    for (maskring::index_t i = 0; i < rows * blocks.columns; ++i)
      flags.push_back(roll(100) < percent);
    const auto bits = keep(mask::block_bits(blocks, flags));
    EXAMPLES_VISIT(mask::block_table{bits, blocks, block});
  }
  if (name == "composed") {
    const int width = arguments.integer("width", tokens / 8);
    const int prefix = arguments.integer("prefix", tokens / 6);
    EXAMPLES_VISIT(mask::prefix_lm{prefix} & (mask::sliding_window{width} | !mask::causal{} |
                                              mask::batched{mask::causal{}, 3 * width}));
  }
  if (name == "branching") {
    const int period = std::max(2, arguments.integer("period", 7));
    EXAMPLES_VISIT(mask::elementwise{branching{period}});
  }
#undef EXAMPLES_VISIT
  refuse_name("mask", name, mask_names);
}

} // namespace examples
