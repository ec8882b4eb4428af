// SPDX-License-Identifier: Apache-2.0
// Counting what a mask's verdicts get wrong, tile by tile, under every layout of the sequence.
#pragma once

#include <maskring/shard/rewrite.hpp>

#include <vector>

namespace maskring::testing {

struct audit_shape {
  int batch = 1, heads = 1, q_len = 0, kv_len = 0;
};

/// How many tiles were asked about, in how many of them truth is `some`, how many were called
/// `some` without being it, and how many were called `none` or `all` without being it.
struct audit {
  index_t tiles = 0, partial = 0, loose = 0, unsound = 0;

  audit& operator+=(const audit& other) {
    tiles += other.tiles;
    partial += other.partial;
    loose += other.loose;
    unsound += other.unsound;
    return *this;
  }
};

/// A mask's truth, pair by pair.
class dense_mask {
public:
  template <class Keep>
  dense_mask(const audit_shape& shape, const Keep& keep) : shape_{shape} {
    for (int b = 0; b < shape.batch; ++b) {
      for (int h = 0; h < shape.heads; ++h) {
        for (int q = 0; q < shape.q_len; ++q) {
          for (int kv = 0; kv < shape.kv_len; ++kv) {
            kept_.push_back(static_cast<bool>(keep(b, h, q, kv)));
          }
        }
      }
    }
  }
  bool operator()(int b, int h, int q, int kv) const {
    return kept_[((static_cast<std::size_t>(b) * shape_.heads + h) * shape_.q_len + q) *
                     shape_.kv_len +
                 kv] != 0;
  }
  const audit_shape& shape() const { return shape_; }

private:
  audit_shape shape_;
  std::vector<char> kept_;
};

/// Compares verdicts with the truth for all tiles of the score matrix between two shards.
template <mask_mod Mask, class QMap, class KvMap>
audit audit_shards(const Mask& mask, const dense_mask& truth, int tile, QMap q_map, int q_size,
                   KvMap kv_map, int kv_size) {
  const auto local = shard::rewrite(mask, q_map, kv_map);
  audit counts;
  for (int b = 0; b < truth.shape().batch; ++b) {
    for (int h = 0; h < truth.shape().heads; ++h) {
      for (int q0 = 0; q0 < q_size; q0 += tile) {
        for (int kv0 = 0; kv0 < kv_size; kv0 += tile) {
          const int q1 = min(q0 + tile, q_size), kv1 = min(kv0 + tile, kv_size);
          index_t kept = 0;
          for (int q = q0; q < q1; ++q) {
            for (int kv = kv0; kv < kv1; ++kv) kept += truth(b, h, q_map(q), kv_map(kv));
          }
          const verdict fact = kept == 0                                ? verdict::none
                               : kept == index_t{q1 - q0} * (kv1 - kv0) ? verdict::all
                                                                        : verdict::some;
          const verdict claim = verdict_of(local, {{q0, q1 - 1}, {kv0, kv1 - 1}, b, h});
          ++counts.tiles;
          counts.partial += fact == verdict::some;
          counts.loose += claim == verdict::some && fact != verdict::some;
          counts.unsound += claim != verdict::some && claim != fact;
        }
      }
    }
  }
  return counts;
}

/// All pairs of shards of one layout; keys are split like queries, as in a ring, or, if `gathered`,
/// whole on every rank.
template <mask_mod Mask, class Layout>
audit audit_layout(const Mask& mask, const dense_mask& truth, int tile, const Layout& queries,
                   const Layout& keys, bool gathered) {
  audit counts;
  const int kv_len = truth.shape().kv_len;
  for (int r = 0; r < queries.ranks(); ++r) {
    const int q_size = static_cast<int>(queries.size(r));
    if (gathered) {
      counts += audit_shards(mask, truth, tile, queries.map(r), q_size, shard::whole{}, kv_len);
      continue;
    }
    for (int s = 0; s < keys.ranks(); ++s) {
      counts += audit_shards(mask, truth, tile, queries.map(r), q_size, keys.map(s),
                             static_cast<int>(keys.size(s)));
    }
  }
  return counts;
}

/// Counts for the unsplit sequence and the three layouts, each as a ring and with gathered keys.
struct layout_audits {
  audit whole, contiguous, zigzag, striped;

  audit all() const {
    audit sum = whole;
    sum += contiguous;
    sum += zigzag;
    sum += striped;
    return sum;
  }
};

template <mask_mod Mask>
layout_audits audit_layouts(const Mask& mask, const dense_mask& truth, int tile, int ranks) {
  const int q_len = truth.shape().q_len, kv_len = truth.shape().kv_len;
  layout_audits out;
  out.whole = audit_shards(mask, truth, tile, shard::whole{}, q_len, shard::whole{}, kv_len);
  for (bool gathered : {false, true}) {
    const auto with = [&]<class Layout>(const Layout& queries, const Layout& keys) {
      return audit_layout(mask, truth, tile, queries, keys, gathered);
    };
    out.contiguous += with(shard::contiguous{q_len, ranks}, shard::contiguous{kv_len, ranks});
    out.zigzag += with(shard::zigzag{q_len, ranks}, shard::zigzag{kv_len, ranks});
    out.striped += with(shard::striped{q_len, ranks}, shard::striped{kv_len, ranks});
  }
  return out;
}

} // namespace maskring::testing
