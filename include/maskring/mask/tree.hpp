// SPDX-License-Identifier: Apache-2.0
// Trees of tokens behind a prefix: drafts to verify, and branches to train on.
#pragma once

#include <maskring/mask/basic.hpp>
#include <maskring/mask/batched.hpp>
#include <maskring/mask/bits.hpp>
#include <maskring/mask/detail/pieces.hpp>

namespace maskring::mask {

/// The matrix A of a tree: A[i][j] if j is i or an ancestor of i.
/// @param parents of each node, −1 for a root.
/// @throws std::invalid_argument if a parent is no node, or nodes are their own ancestors.
inline bit_matrix ancestors(std::span<const int> parents) {
  const auto nodes = static_cast<index_t>(parents.size());
  for (index_t i = 0; i < nodes; ++i) {
    const int parent = parents[static_cast<std::size_t>(i)];
    maskring::detail::require(parent >= -1 && parent < nodes, "ancestors: parent of node ", i,
                              " is ", parent, ", expected -1 to ", nodes - 1);
  }
  return {nodes, nodes, [&](auto mark) {
            for (index_t i = 0; i < nodes; ++i) {
              index_t depth = 0;
              for (index_t a = i; a >= 0; a = parents[static_cast<std::size_t>(a)]) {
                maskring::detail::require(depth++ < nodes, "ancestors: node ", i,
                                          " is its own ancestor, expected a tree");
                mark(i, a);
              }
            }
          }};
}

/// kv < prefix, or kv − prefix is query q or an ancestor of it: a tree of drafted tokens is
/// verified in one pass (X. Miao et al., SpecInfer, 2023). Queries are the nodes, keys the prefix,
/// then them.
///
/// Ranges are answered a query at a time in constant time each, exactly up to 4,096 queries.
class tree {
public:
  /// @throws std::invalid_argument if prefix < 0 or the matrix is not square.
  constexpr tree(int prefix, const bit_matrix_view& ancestor) : prefix_{prefix}, tree_{ancestor} {
    maskring::detail::require(prefix >= 0, "tree: prefix is ", prefix, ", expected 0 or more");
    maskring::detail::require(ancestor.rows == ancestor.columns, "tree: the ancestor matrix is ",
                              ancestor.rows, " x ", ancestor.columns, ", expected a square");
  }
  constexpr bool operator()(int, int, int q, int kv) const {
    return kv < prefix_ || tree_(q, kv - prefix_);
  }
  constexpr kleene operator()(range, range, range q, range kv) const {
    const detail::halves keys{kv, prefix_};
    detail::joined seen;
    if (!detail::is_empty(keys.below)) seen.add(true);
    if (!detail::is_empty(keys.from)) {
      constexpr int most = 4096;
      int asked = 0;
      for (index_t i = q.lo; i <= q.hi && !seen.mixed(); i += q.is_point() ? 1 : q.step) {
        seen.add(++asked > most ? kleene{verdict::some} : row(i, keys.from));
      }
    }
    return seen.result(detail::joint_depends(q, kv));
  }
  friend constexpr bool operator==(const tree&, const tree&) = default;

private:
  constexpr kleene row(index_t i, range kv) const {
    const verdict all_keys = tree_(i, kv.lo - prefix_, kv.hi - prefix_);
    if (all_keys != verdict::some || kv.step == 1) return {all_keys, 0};
    detail::joined seen; // strided keys: the verdict of those between them does not count
    for (index_t j = kv.lo; j <= kv.hi && !seen.mixed(); j += kv.step) {
      seen.add(tree_(i, static_cast<int>(j - prefix_)));
    }
    return seen.result(0);
  }

  int prefix_;
  bit_matrix_view tree_;
};

/// kv < prefix, or q // n = (kv − prefix) // n and (kv − prefix) % n ≤ q % n: branches of n tokens
/// that continue one prefix and do not see each other; queries hold no prefix (collected in
/// attention-gym, 2024).
class tree_training {
public:
  /// @throws std::invalid_argument if prefix < 0 or branch < 1.
  constexpr tree_training(int prefix, int branch) : prefix_{prefix}, branches_{causal{}, branch} {
    maskring::detail::require(prefix >= 0, "tree_training: prefix is ", prefix,
                              ", expected 0 or more");
  }
  constexpr bool operator()(int b, int h, int q, int kv) const {
    return kv < prefix_ || branches_(b, h, q, kv - prefix_);
  }
  constexpr kleene operator()(range b, range h, range q, range kv) const {
    const detail::halves keys{kv, prefix_};
    detail::joined seen;
    if (!detail::is_empty(keys.below)) seen.add(true);
    if (!detail::is_empty(keys.from)) seen.add(branches_(b, h, q, keys.from - prefix_));
    return seen.result(detail::joint_depends(q, kv));
  }
  friend constexpr bool operator==(tree_training, tree_training) = default;

private:
  int prefix_;
  batched<causal> branches_;
};

} // namespace maskring::mask
