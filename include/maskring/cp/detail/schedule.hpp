// SPDX-License-Identifier: Apache-2.0
// Which of a rank's queries take part in each step of a ring, and where their results go.
#pragma once

#include <maskring/cp/plan.hpp>

#include <algorithm>

namespace maskring::cp::detail {

/// Queries that are treated alike at a step.
struct piece {
  interval queries;
  bool first = true; ///< no step before has worked on them
  bool last = true;  ///< no later step will: their results are final
  friend constexpr bool operator==(const piece&, const piece&) = default;
};

/// A step works only on queries that see something of its shard, so that results of the others are
/// not read and written again; and queries whose last step it is get their rounded results from it,
/// without a carried state where it is also their first. Step 0 takes those that see nothing at
/// all.
class schedule {
public:
  /// @param tile rows of a kernel's tile; pieces are cut at multiples of it, at most 15 times.
  schedule(const plan& road, int rank, index_t tile) {
    const int ranks = road.ranks();
    const index_t rows = road.q_size(rank);
    const index_t unit = tile * max(index_t{1}, (rows + 16 * tile - 1) / (16 * tile));
    std::vector<index_t> cuts{0, rows};
    for (int step = 0; step < ranks; ++step) {
      const interval& seeing = road.queries(rank, road.shard_at(rank, step));
      interval rounded;
      if (!seeing.empty()) {
        rounded = {seeing.lo / unit * unit, min(rows, (seeing.hi + unit - 1) / unit * unit)};
        cuts.insert(cuts.end(), {rounded.lo, rounded.hi});
      }
      queries_.push_back(rounded);
    }
    std::sort(cuts.begin(), cuts.end());
    pieces_.resize(static_cast<std::size_t>(ranks));
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
      if (cuts[i] < cuts[i + 1]) add({cuts[i], cuts[i + 1]});
    }
  }

  const std::vector<piece>& pieces(int step) const {
    return pieces_[static_cast<std::size_t>(step)];
  }
  /// The hull of the queries that see something at a step.
  const interval& queries(int step) const { return queries_[static_cast<std::size_t>(step)]; }

  /// Whether results of some step are continued by a later one.
  bool carries() const {
    for (const std::vector<piece>& step : pieces_) {
      for (const piece& p : step) {
        if (!p.last) return true;
      }
    }
    return false;
  }

private:
  /// Queries between two cuts, which take part in the same steps.
  void add(const interval& part) {
    std::vector<std::size_t> steps;
    for (std::size_t step = 0; step < queries_.size(); ++step) {
      if (queries_[step].contains(part)) steps.push_back(step);
    }
    if (steps.empty()) steps.push_back(0);
    for (const std::size_t step : steps) {
      const piece now{part, step == steps.front(), step == steps.back()};
      std::vector<piece>& all = pieces_[step];
      if (!all.empty() && all.back().queries.hi == part.lo && all.back().first == now.first &&
          all.back().last == now.last) {
        all.back().queries.hi = part.hi;
      } else {
        all.push_back(now);
      }
    }
  }

  std::vector<interval> queries_;          // by step
  std::vector<std::vector<piece>> pieces_; // by step, in the order of the queries
};

} // namespace maskring::cp::detail
