// SPDX-License-Identifier: Apache-2.0
// What a call computes: its tensors, its options, and the checks that they fit together.
#pragma once

#include <maskring/core/errors.hpp>
#include <maskring/core/view.hpp>

#include <cmath>
#include <cstdint>
#include <type_traits>

namespace maskring {

/// Queries × keys of one tile of the block map.
struct tile_shape {
  int q = 128;
  int kv = 128;
  /// Query tiles are counted so that the last one ends with the last query. The first one is short
  /// then, where causal masks leave little to compute.
  bool from_end = false;

  /// How many places of the first query tile lie before the first of `q_len` queries.
  constexpr index_t lead(index_t q_len) const { return from_end ? (q - q_len % q) % q : 0; }
  friend constexpr bool operator==(tile_shape, tile_shape) = default;
};

/// The state that an earlier call over other keys left behind; the new call continues from it.
struct carried {
  view<const float, 4> out; ///< [batch, q_heads, q_len, v_dim], normalised
  view<const float, 3> lse; ///< [batch, q_heads, q_len], natural log
};

/// For a host call that is one of several over the same rows: the state between them as the kernels
/// hold it, so that nothing is rounded on the way. Output and lse of an open state are
/// Σ 2^(score − maximum)·v and the maximum, scores in base 2.
struct open_rows {
  view<float, 3> sum{}; ///< [batch, q_heads, q_len], Σ 2^(score − maximum)
  bool before = false;  ///< whether the carried state is open
  bool after = false;   ///< whether the results, floats with an lse, are left open
};

/// What one of several device calls over the same rows does with those of a query tile: bits.
namespace tile_part {
inline constexpr std::uint8_t continues = 1;  ///< begins with the state there; else with nothing
inline constexpr std::uint8_t stays_open = 2; ///< leaves the state for a later call; else results
inline constexpr std::uint8_t idle = 4;       ///< neither: the rows have no part in the call
} // namespace tile_part

/// Queries [batch, q_heads, q_len, qk_dim], keys [batch, kv_heads, kv_len, qk_dim] and values
/// [batch, kv_heads, kv_len, v_dim]. Query head h reads key head h / (q_heads / kv_heads).
template <class T>
struct inputs {
  view<const T, 4> q, k, v;
  view<const float, 1> sink{}; ///< [q_heads], a logit that joins each row's denominator; optional
  carried previous{};          ///< optional

  template <class Q, class K, class V>
  constexpr inputs(const Q& queries, const K& keys, const V& values)
      : q{view{queries}}, k{view{keys}}, v{view{values}} {}

  constexpr inputs with_sink(view<const float, 1> logits) const {
    inputs out = *this;
    out.sink = logits;
    return out;
  }
  constexpr inputs continuing(carried state) const {
    inputs out = *this;
    out.previous = state;
    return out;
  }
};
template <class Q, class K, class V>
inputs(const Q&, const K&, const V&) -> inputs<std::remove_const_t<typename Q::element_type>>;

/// Output [batch, q_heads, q_len, v_dim], of the inputs' element type or float, and the log-sum-exp
/// [batch, q_heads, q_len] (natural log, optional). A row that sees no key: output 0, lse −inf.
template <class O>
struct results {
  view<O, 4> out;
  view<float, 3> lse{};

  template <class Out>
  constexpr explicit results(const Out& output) : out{view{output}} {}
  template <class Out, class Lse>
  constexpr results(const Out& output, const Lse& log_sum_exp)
      : out{view{output}}, lse{log_sum_exp} {}
};
template <class Out>
results(const Out&) -> results<typename Out::element_type>;
template <class Out, class Lse>
results(const Out&, const Lse&) -> results<typename Out::element_type>;

/// What the backward pass needs of the forward pass: its inputs and both of its results.
template <class T, class O>
struct saved {
  view<const T, 4> q, k, v;
  view<const O, 4> out;
  view<const float, 3> lse;
  view<const float, 1> sink{};

  template <class Q, class K, class V, class Out, class Lse>
  constexpr saved(const Q& queries, const K& keys, const V& values, const Out& output,
                  const Lse& log_sum_exp)
      : q{view{queries}}, k{view{keys}}, v{view{values}}, out{view{output}}, lse{log_sum_exp} {}

  constexpr saved with_sink(view<const float, 1> logits) const {
    saved copy = *this;
    copy.sink = logits;
    return copy;
  }
};
template <class Q, class K, class V, class Out, class Lse>
saved(const Q&, const K&, const V&, const Out&, const Lse&)
    -> saved<std::remove_const_t<typename Q::element_type>,
             std::remove_const_t<typename Out::element_type>>;

/// The gradients that come from above: of the output, and (optional) of the log-sum-exp.
template <class T>
struct upstream {
  view<const T, 4> dout;
  view<const float, 3> dlse{};

  template <class Dout>
  constexpr explicit upstream(const Dout& gradient) : dout{view{gradient}} {}
  template <class Dout, class Dlse>
  constexpr upstream(const Dout& gradient, const Dlse& lse_gradient)
      : dout{view{gradient}}, dlse{lse_gradient} {}
};
template <class Dout>
upstream(const Dout&) -> upstream<std::remove_const_t<typename Dout::element_type>>;
template <class Dout, class Dlse>
upstream(const Dout&, const Dlse&) -> upstream<std::remove_const_t<typename Dout::element_type>>;

/// The gradients that the backward pass writes, shaped like q, k and v; of the inputs' element type
/// or float. `dsink` [q_heads] is optional.
template <class G>
struct gradients {
  view<G, 4> dq, dk, dv;
  view<float, 1> dsink{};

  template <class Dq, class Dk, class Dv>
  constexpr gradients(const Dq& q, const Dk& k, const Dv& v)
      : dq{view{q}}, dk{view{k}}, dv{view{v}} {}

  constexpr gradients with_sink(view<float, 1> gradient) const {
    gradients copy = *this;
    copy.dsink = gradient;
    return copy;
  }
};
template <class Dq, class Dk, class Dv>
gradients(const Dq&, const Dk&, const Dv&) -> gradients<typename Dq::element_type>;

struct options {
  float scale = 0;         ///< of q·k; 0 stands for 1/√qk_dim
  tile_shape tile{};       ///< of the block map, where the call builds it
  bool accumulate = false; ///< backward: add to the gradients (float ones) instead of writing them
};

/// The sizes of one call.
struct problem {
  index_t batch = 0, q_heads = 0, kv_heads = 0, q_len = 0, kv_len = 0, qk_dim = 0, v_dim = 0;
  float scale = 1;

  constexpr index_t group() const { return kv_heads == 0 ? 1 : q_heads / kv_heads; }
  friend constexpr bool operator==(const problem&, const problem&) = default;
};

namespace detail {

inline constexpr const char* dimension_name[] = {"batch", "head", "sequence", "dim"};

template <class View>
void require_extent(const char* call, const char* name, const View& tensor, int d, index_t expected,
                    const char* because) {
  require(tensor.extent(d) == expected, call, ": ", name, " has ", dimension_name[d], " extent ",
          tensor.extent(d), ", expected ", expected, " (", because, ")");
}

template <class View>
void require_tensor(const char* call, const char* name, const View& tensor) {
  for (int d = 0; d < static_cast<int>(View::rank()); ++d) {
    require(tensor.extent(d) >= 0, call, ": ", name, " has ", dimension_name[d], " extent ",
            tensor.extent(d), ", expected 0 or more");
  }
  require(tensor.size() == 0 || tensor.data != nullptr, call, ": ", name,
          " is a null pointer, expected ", tensor.size(), " elements");
  if constexpr (View::rank() == 4) {
    require(tensor.extent(3) <= 1 || tensor.stride(3) == 1, call, ": ", name, " has stride ",
            tensor.stride(3), " on dim, expected 1");
  }
}

template <class View>
void require_rows(const char* call, const char* name, const View& tensor, const problem& p) {
  require_tensor(call, name, tensor);
  require_extent(call, name, tensor, 0, p.batch, "as q");
  require_extent(call, name, tensor, 1, p.q_heads, "as q");
  require_extent(call, name, tensor, 2, p.q_len, "as q");
}

/// Checks q, k, v and the options against one another and returns the sizes.
/// @throws std::invalid_argument naming the tensor, its extent and what was expected.
template <class Inputs>
problem check_inputs(const char* call, const Inputs& in, const options& opt) {
  require_tensor(call, "q", in.q);
  require_tensor(call, "k", in.k);
  require_tensor(call, "v", in.v);
  problem p;
  p.batch = in.q.extent(0);
  p.q_heads = in.q.extent(1);
  p.q_len = in.q.extent(2);
  p.qk_dim = in.q.extent(3);
  p.kv_heads = in.k.extent(1);
  p.kv_len = in.k.extent(2);
  p.v_dim = in.v.extent(3);
  require(p.qk_dim > 0, call, ": q has dim extent 0, expected 1 or more");
  require(p.v_dim > 0, call, ": v has dim extent 0, expected 1 or more");
  require_extent(call, "k", in.k, 0, p.batch, "as q");
  require_extent(call, "k", in.k, 3, p.qk_dim, "as q");
  require_extent(call, "v", in.v, 0, p.batch, "as q");
  require_extent(call, "v", in.v, 1, p.kv_heads, "as k");
  require_extent(call, "v", in.v, 2, p.kv_len, "as k");
  require(p.q_heads == 0 || (p.kv_heads > 0 && p.q_heads % p.kv_heads == 0), call, ": q has ",
          p.q_heads, " heads, expected a multiple of the ", p.kv_heads, " heads of k");
  constexpr index_t most = (index_t{1} << 31) - 1;
  require(p.q_len <= most && p.kv_len <= most, call, ": sequence extents ", p.q_len, " and ",
          p.kv_len, " of q and k, expected at most ", most);
  require(opt.scale >= 0 && std::isfinite(opt.scale), call, ": scale is ", opt.scale,
          ", expected a positive number, or 0 for 1/sqrt(dim)");
  require(opt.tile.q > 0 && opt.tile.kv > 0, call, ": tile is ", opt.tile.q, " x ", opt.tile.kv,
          ", expected positive sizes");
  p.scale = opt.scale > 0 ? opt.scale : 1 / std::sqrt(static_cast<float>(p.qk_dim));
  if (in.sink) {
    require(in.sink.extent(0) == p.q_heads, call, ": sink has ", in.sink.extent(0),
            " logits, expected ", p.q_heads, " (one a query head)");
  }
  return p;
}

template <class T, class O>
problem check_forward(const inputs<T>& in, const results<O>& out, const options& opt) {
  static_assert(std::is_same_v<T, O> || std::is_same_v<float, O>,
                "maskring: the output has the inputs' element type, or float");
  const problem p = check_inputs("forward", in, opt);
  require_rows("forward", "out", out.out, p);
  require_extent("forward", "out", out.out, 3, p.v_dim, "as v");
  if (out.lse) require_rows("forward", "lse", out.lse, p);
  if (in.previous.out) {
    require_rows("forward", "previous out", in.previous.out, p);
    require_extent("forward", "previous out", in.previous.out, 3, p.v_dim, "as v");
    require_rows("forward", "previous lse", in.previous.lse, p);
  }
  return p;
}

template <class T, class O>
void check_open(const open_rows& open, const inputs<T>& in, const results<O>& out,
                const problem& p) {
  if (!open.before && !open.after) return;
  require_rows("forward", "open sum", open.sum, p);
  require(!open.before || in.previous.out, "forward: open.before is set, expected a carried state");
  require(!open.after || (std::is_same_v<O, float> && out.lse),
          "forward: open.after is set, expected results of type float with an lse");
}

template <class T, class O, class D, class G>
problem check_backward(const saved<T, O>& in, const upstream<D>& up, const gradients<G>& grad,
                       const options& opt) {
  static_assert(std::is_same_v<T, G> || std::is_same_v<float, G>,
                "maskring: gradients have the inputs' element type, or float");
  const char* call = "backward";
  const problem p = check_inputs(call, in, opt);
  require(!opt.accumulate || std::is_same_v<float, G>, call,
          ": accumulate is set, expected gradients of type float");
  require_rows(call, "out", in.out, p);
  require_extent(call, "out", in.out, 3, p.v_dim, "as v");
  require_rows(call, "lse", in.lse, p);
  require_rows(call, "dout", up.dout, p);
  require_extent(call, "dout", up.dout, 3, p.v_dim, "as v");
  if (up.dlse) require_rows(call, "dlse", up.dlse, p);
  require_rows(call, "dq", grad.dq, p);
  require_extent(call, "dq", grad.dq, 3, p.qk_dim, "as q");
  const auto check_keys = [&](const char* name, const view<G, 4>& tensor, index_t dim) {
    require_tensor(call, name, tensor);
    require_extent(call, name, tensor, 0, p.batch, "as k");
    require_extent(call, name, tensor, 1, p.kv_heads, "as k");
    require_extent(call, name, tensor, 2, p.kv_len, "as k");
    require_extent(call, name, tensor, 3, dim, "as its input");
  };
  check_keys("dk", grad.dk, p.qk_dim);
  check_keys("dv", grad.dv, p.v_dim);
  if (grad.dsink) {
    require(static_cast<bool>(in.sink), call, ": dsink is given, expected a sink with it");
    require(grad.dsink.extent(0) == p.q_heads, call, ": dsink has ", grad.dsink.extent(0),
            " entries, expected ", p.q_heads);
  }
  return p;
}

} // namespace detail
} // namespace maskring
