// SPDX-License-Identifier: Apache-2.0
// What the program is asked to do, apart from where the tensors come from and go to.
#pragma once

#include "support/mask_names.hpp"
#include "support/npy.hpp"
#include "support/progress.hpp"

#include <maskring/cp/shape.hpp>

#include <functional>
#include <string>
#include <vector>

namespace attend {

/// Tensors are arrays [batch, heads, sequence, dim] of one type; those that are not asked for are
/// empty.
struct job {
  examples::npy_array q, k, v, grad_out;
  examples::npy_array out, lse, dq, dk, dv;
  std::string mask, score = "none";
  std::vector<int> document_lengths;
  float scale = 0;
  int ranks = 1;
  std::string layout = "contiguous", method = "ring";
  bool backward = false;

  maskring::index_t extent(const examples::npy_array& a, int d) const {
    return a.shape[static_cast<std::size_t>(d)];
  }
  maskring::cp::shape sizes() const {
    return {extent(q, 0), extent(q, 1), extent(k, 1), extent(q, 3), extent(v, 3)};
  }
  examples::mask_shape mask_shape() const {
    return {static_cast<int>(extent(q, 0)), static_cast<int>(extent(q, 1)),
            static_cast<int>(q_len()), static_cast<int>(kv_len())};
  }
  maskring::index_t q_len() const { return extent(q, 2); }
  maskring::index_t kv_len() const { return extent(k, 2); }
};

/// @throws std::invalid_argument for a mask or score modifier that is not known or does not fit the
/// tensors.
void run_on_host(job& work);

} // namespace attend
