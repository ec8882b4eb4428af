// SPDX-License-Identifier: Apache-2.0
// What every mask's test does: compare with a definition written separately, then audit verdicts.
#pragma once

#include "support/mask_audit.hpp"

#include <doctest/doctest.h>

#include <string>

namespace maskring::testing {

/// Whether verdicts must be exact at tiles 64 and 128 under every layout.
enum class tightness { exact, loose };

/// Every element against `definition(b, h, q, kv)`, then every verdict against the elements: at
/// tiles 64 and 128 for 4 ranks, at odd tiles for 3. Returns the share of loose tiles, in percent.
template <mask_mod Mask, class Definition>
double check_mask(const std::string& name, const audit_shape& shape, const Mask& mask,
                  const Definition& definition, tightness promise) {
  INFO(name << " on " << shape.q_len << " x " << shape.kv_len);
  static_assert(classifiable_mask<Mask>);
  static_assert(std::equality_comparable<Mask>);
  const dense_mask truth{shape, definition};
  index_t different = 0;
  for (int b = 0; b < shape.batch; ++b) {
    for (int h = 0; h < shape.heads; ++h) {
      for (int q = 0; q < shape.q_len; ++q) {
        for (int kv = 0; kv < shape.kv_len; ++kv) {
          different += static_cast<bool>(mask(b, h, q, kv)) != truth(b, h, q, kv);
        }
      }
    }
  }
  CHECK(different == 0);
  CHECK(mask == mask);

  audit sum;
  for (int tile : {64, 128}) {
    const layout_audits counts = audit_layouts(mask, truth, tile, 4);
    sum += counts.all();
    if (promise == tightness::exact) {
      CHECK_MESSAGE(counts.whole.loose == 0, "whole, tile ", tile);
      CHECK_MESSAGE(counts.contiguous.loose == 0, "contiguous, tile ", tile);
      CHECK_MESSAGE(counts.zigzag.loose == 0, "zigzag, tile ", tile);
      CHECK_MESSAGE(counts.striped.loose == 0, "striped, tile ", tile);
    }
  }
  CHECK(sum.unsound == 0);
  CHECK(audit_layouts(mask, truth, 23, 3).all().unsound == 0);
  CHECK(audit_layouts(mask, truth, 200, 2).all().unsound == 0);

  // Independent of batch and head only if truth is: the whole asked at once names its axes.
  const kleene everywhere = truth_of(
      mask,
      {{0, shape.q_len - 1}, {0, shape.kv_len - 1}, {0, shape.batch - 1}, {0, shape.heads - 1}});
  bool by_batch = false, by_head = false;
  for (int b = 0; b < shape.batch; ++b) {
    for (int h = 0; h < shape.heads; ++h) {
      for (int q = 0; q < shape.q_len; ++q) {
        for (int kv = 0; kv < shape.kv_len; ++kv) {
          by_batch = by_batch || truth(b, h, q, kv) != truth(0, h, q, kv);
          by_head = by_head || truth(b, h, q, kv) != truth(b, 0, q, kv);
        }
      }
    }
  }
  CHECK((!by_batch || (everywhere.depends() & batch_axis)));
  CHECK((!by_head || (everywhere.depends() & head_axis)));
  return sum.tiles == 0 ? 0.0
                        : 100.0 * static_cast<double>(sum.loose) / static_cast<double>(sum.tiles);
}

} // namespace maskring::testing
