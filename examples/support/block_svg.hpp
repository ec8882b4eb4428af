// SPDX-License-Identifier: Apache-2.0
// Block maps as SVG pictures.
#pragma once

#include <maskring/block/map.hpp>

#include <sstream>
#include <string>
#include <vector>

namespace examples {

/// An SVG document under construction; lengths are pixels.
class svg {
public:
  static constexpr const char* full = "#2b6c99";
  static constexpr const char* partial = "#9ccbe8";
  static constexpr const char* ink = "#444444";
  static constexpr const char* shade = "#e4e4e4";

  void rectangle(double x, double y, double w, double h, const char* fill, const char* stroke) {
    body_ << "<rect x=\"" << x << "\" y=\"" << y << "\" width=\"" << w << "\" height=\"" << h
          << "\" fill=\"" << fill << "\" stroke=\"" << stroke << "\"/>\n";
  }
  void line(double x0, double y0, double x1, double y1, const char* stroke) {
    body_ << "<path d=\"M" << x0 << ' ' << y0 << 'L' << x1 << ' ' << y1 << "\" stroke=\"" << stroke
          << "\"/>\n";
  }
  /// A path in units of `scale` pixels from (x, y).
  void path(double x, double y, double scale, const std::string& d, const char* fill) {
    if (d.empty()) return;
    body_ << "<path transform=\"translate(" << x << ' ' << y << ") scale(" << scale << ")\" fill=\""
          << fill << "\" d=\"" << d << "\"/>\n";
  }
  /// Text around (x, y): anchor "start", "middle" or "end".
  void text(double x, double y, const std::string& words, const char* anchor = "start",
            int size = 11, const char* fill = ink) {
    body_ << "<text x=\"" << x << "\" y=\"" << y << "\" font-size=\"" << size << "\" fill=\""
          << fill << "\" text-anchor=\"" << anchor << "\">" << escaped(words) << "</text>\n";
  }

  /// One layer of a block map in the rectangle given: dark full tiles, light partial ones.
  void map(double x, double y, double w, double h, const maskring::block_map_view& map, int batch,
           int head) {
    rectangle(x, y, w, h, "#ffffff", ink);
    if (map.q_len == 0 || map.kv_len == 0) return;
    // In units of tokens, so that tiles cut off at the end are drawn so.
    body_ << "<g transform=\"translate(" << x << ' ' << y << ") scale("
          << w / static_cast<double>(map.kv_len) << ' ' << h / static_cast<double>(map.q_len)
          << ")\">\n";
    for (bool kind : {false, true}) {
      const std::string path = tiles(map, batch, head, kind);
      if (!path.empty()) {
        body_ << "<path fill=\"" << (kind ? partial : full) << "\" d=\"" << path << "\"/>\n";
      }
    }
    body_ << "</g>\n";
  }

  std::string finish(double width, double height) const {
    std::ostringstream out;
    out << "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " << width << ' ' << height
        << "\" width=\"" << width << "\" height=\"" << height
        << "\" font-family=\"sans-serif\" shape-rendering=\"crispEdges\">\n"
        << "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
        << body_.str() << "</svg>\n";
    return out.str();
  }

private:
  static std::string escaped(const std::string& words) {
    std::string out;
    for (char c : words) {
      out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string{c};
    }
    return out;
  }

  // The runs of one kind as rectangles; equal runs of rows below each other are one.
  static std::string tiles(const maskring::block_map_view& map, int batch, int head, bool partial) {
    struct open_run {
      maskring::tile_run run;
      int since;
    };
    std::ostringstream path;
    std::vector<open_run> open;
    for (int row = 0; row <= map.q_tiles(); ++row) {
      std::vector<maskring::tile_run> runs;
      if (row < map.q_tiles()) {
        const auto at = map.row(batch, head, row);
        for (auto run = map.rows.begin(at); run != map.rows.end(at); ++run) {
          if (run->partial() == partial) runs.push_back(*run);
        }
      }
      std::vector<open_run> still;
      const auto contains = [&](const auto& list, const maskring::tile_run& run) {
        for (const auto& r : list) {
          if (r == run) return true;
        }
        return false;
      };
      for (const open_run& o : open) {
        if (contains(runs, o.run)) {
          still.push_back(o);
          continue;
        }
        const auto x = o.run.first * maskring::index_t{map.tile.kv};
        const auto y = o.since * maskring::index_t{map.tile.q};
        const auto w = std::min(map.kv_len, o.run.end() * maskring::index_t{map.tile.kv}) - x;
        const auto h = std::min(map.q_len, row * maskring::index_t{map.tile.q}) - y;
        path << 'M' << x << ' ' << y << 'h' << w << 'v' << h << 'h' << -w << 'z';
      }
      for (const auto& run : runs) {
        bool known = false;
        for (const open_run& o : still) known = known || o.run == run;
        if (!known) still.push_back({run, row});
      }
      open = std::move(still);
    }
    return path.str();
  }

  std::ostringstream body_;
};

} // namespace examples
