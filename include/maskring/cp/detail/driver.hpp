// SPDX-License-Identifier: Apache-2.0
// What the drivers share: set-up, checks, the masks of each piece of work, and kept memory.
#pragma once

#include <maskring/comm/concepts.hpp>
#include <maskring/cp/agreement.hpp>
#include <maskring/cp/backend.hpp>
#include <maskring/cp/detail/kept_maps.hpp>
#include <maskring/cp/fingerprint.hpp>
#include <maskring/cp/plan.hpp>
#include <maskring/cp/timeline.hpp>

#include <bit>
#include <optional>

namespace maskring::cp::detail {

/// Memory of a communicator, kept between calls and replaced when more is asked for.
template <comm::buffer_source Comm>
class kept_buffer {
public:
  template <class T>
  view<T, 4> tensor(Comm& comm, index_t batch, index_t heads, index_t length, index_t dim) {
    return {at_least<T>(comm, batch * heads * length * dim), {batch, heads, length, dim}};
  }
  template <class T>
  T* at_least(Comm& comm, index_t count) {
    if (count == 0) return nullptr;
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (!memory_ || bytes > bytes_) {
      memory_.reset();
      memory_.emplace(comm.allocate(bytes));
      bytes_ = bytes;
    }
    return static_cast<T*>(memory_->data());
  }

private:
  std::optional<decltype(std::declval<Comm&>().allocate(std::size_t{}))> memory_;
  std::size_t bytes_ = 0;
};

/// Row-major without gaps, so that it can be sent as it lies.
template <class T>
constexpr bool is_packed(const view<T, 4>& tensor) {
  index_t stride = 1;
  for (int d = 3; d >= 0; --d) {
    if (tensor.extent(d) > 1 && tensor.stride(d) != stride) return false;
    stride *= tensor.extent(d);
  }
  return true;
}

/// The tensor as [1, 1, 1, n], for operations on memory as such.
inline view<float, 4> as_row(const view<float, 1>& tensor) {
  return {tensor.data, {1, 1, 1, tensor.extent(0)}, {0, 0, 0, tensor.stride(0)}};
}

/// Memory of a rank's own gradients: fp32 sums where they are handed out in a shorter type, and
/// what the sums of the ranks' shares lose by rounding.
template <class Comm>
struct home_memory {
  kept_buffer<Comm> dq, dk, dv, dk_lost, dv_lost;
};

/// What home_gradients() makes.
struct home_parts {
  bool queries = true;   ///< dq and dsink
  bool keys = true;      ///< dk and dv
  bool zero_keys = true; ///< these begin at zero; else somebody writes them
};

/// Sums of the ranks' shares of dk and dv: the gradients, and what they lose by rounding where the
/// backend keeps that.
struct share_sums {
  view<float, 4> dk, dv, dk_lost, dv_lost;
};

/// Gives word of what this rank has queued up to here to the ranks that `tells` names, and lets
/// what it queues from now on wait for the same of those that `hears` names.
template <class Exec, class Comm, class Tells, class Hears>
void exchange_word(const Exec& exec, Comm& comm, Tells tells, Hears hears) {
  constexpr std::byte* nothing = nullptr;
  std::vector<comm::transfer> words;
  for (int peer = 0; peer < comm.size(); ++peer) {
    if (peer == comm.rank()) continue;
    if (tells(peer)) words.push_back(comm::send(peer, nothing, 0));
    if (hears(peer)) words.push_back(comm::receive(peer, nothing, 0));
  }
  if (words.empty()) return;
  const auto queue = backend<Exec>::queue(exec);
  comm.start(queue, words).wait(queue);
}

template <class Comm, class QLayout, class KvLayout, class Mask, class Score>
class driver {
public:
  const cp::plan& plan() const { return plan_; }
  const cp::shape& sizes() const { return sizes_; }

  /// From now on the steps of this driver go into a timeline; null ends that.
  void record(timeline* to) { record(to, rank()); }
  /// The same under another rank's name, for drivers that are parts of others.
  void record(timeline* to, int as_rank) { recorder_.set(to, as_rank); }

protected:
  using communicator = Comm;

  /// @param make_plan is called once the ranks have agreed on the sizes.
  template <class MakePlan>
  driver(const char* call, Comm& comm, const cp::shape& sizes,
         const shards<QLayout, KvLayout>& split, const Mask& mask, const Score& score,
         const options& opt, MakePlan make_plan)
      : comm_{&comm},
        sizes_{sizes},
        split_{split},
        mask_{mask},
        score_{score},
        options_{opt},
        plan_{(require_sizes(call, comm, sizes, split, opt), make_plan())} {
    for (int rank = 0; rank < ranks(); ++rank) {
      maskring::detail::require(plan_.ranks() == ranks() &&
                                    plan_.q_size(rank) == split.q.size(rank) &&
                                    plan_.kv_size(rank) == split.kv.size(rank),
                                call, ": the plan is for other shards");
    }
    const fact facts[] = {{"mask", plan_.fingerprint(), false}};
    require_agreement(comm, call, facts);
  }

  template <class Exec>
  static constexpr void require_backend() {
    static_assert(
        attention_backend<Exec>,
        "maskring: there is no cp::backend for this execution context; include the header "
        "that defines it (maskring/cp/host.hpp for the host)");
    static_assert(comm::point_to_point<Comm, queue_of<Exec>>,
                  "maskring: this communicator cannot move the memory of this execution context");
  }

  int rank() const { return comm_->rank(); }
  int ranks() const { return comm_->size(); }
  index_t q_size() const { return plan_.q_size(rank()); }
  index_t kv_size() const { return plan_.kv_size(rank()); }
  /// What this rank needs of the shard that it works on at a step of a ring.
  const interval& needed_at(int step) const {
    return plan_.needed(rank(), plan_.shard_at(rank(), step));
  }

  /// The local tensors against the sizes that the ranks agreed on.
  void require_local(const char* call, const problem& p) const {
    const auto same = [&](const char* what, index_t is, index_t expected) {
      maskring::detail::require(is == expected, call, ": ", what, " is ", is, ", expected ",
                                expected, " on rank ", rank(), " of ", ranks());
    };
    same("batch", p.batch, sizes_.batch);
    same("query heads", p.q_heads, sizes_.q_heads);
    same("key heads", p.kv_heads, sizes_.kv_heads);
    same("dim of q and k", p.qk_dim, sizes_.qk_dim);
    same("dim of v", p.v_dim, sizes_.v_dim);
    same("sequence extent of q", p.q_len, q_size());
    same("sequence extent of k", p.kv_len, kv_size());
  }

  /// Two ranks that send different element types would misread each other's keys; the first call
  /// with a type finds out.
  template <class T>
  void require_same_element(const char* call) {
    if (element_bytes_ == sizeof(T)) return;
    const fact facts[] = {{"bytes of an element", sizeof(T)}};
    require_agreement(*comm_, call, facts);
    element_bytes_ = sizeof(T);
  }

  /// Sends and receives the group while `compute` runs.
  template <class Exec, class Compute>
  void overlap(const Exec& exec, const step_label& label, Compute compute) {
    recorder_.overlap(exec, *comm_, group_, label, compute);
  }

  /// Where the gradients are summed: in the caller's tensors if they hold floats, else in kept
  /// memory. They begin at zero, unless they are added to what is there.
  template <class Exec, class G>
  gradients<float> home_gradients(const Exec& exec, const gradients<G>& grad,
                                  home_memory<Comm>& memory, home_parts parts = {}) {
    const auto home = [&] {
      if constexpr (std::is_same_v<G, float>) {
        return grad;
      } else {
        const auto like = [&](kept_buffer<Comm>& kept, const view<G, 4>& tensor) {
          return kept.template tensor<float>(*comm_, tensor.extent(0), tensor.extent(1),
                                             tensor.extent(2), tensor.extent(3));
        };
        const view<float, 4> none;
        gradients<float> out{none, none, none};
        if (parts.queries) out.dq = like(memory.dq, grad.dq);
        if (parts.keys) {
          out.dk = like(memory.dk, grad.dk);
          out.dv = like(memory.dv, grad.dv);
        }
        return out.with_sink(grad.dsink);
      }
    }();
    if (!options_.accumulate && parts.queries) backend<Exec>::zero(exec, home.dq);
    // Without queries there may be no call that writes it.
    if (!options_.accumulate && (parts.queries || q_size() == 0) && home.dsink) {
      backend<Exec>::zero(exec, as_row(home.dsink));
    }
    if (!options_.accumulate && parts.keys && parts.zero_keys) {
      backend<Exec>::zero(exec, home.dk);
      backend<Exec>::zero(exec, home.dv);
    }
    return home;
  }

  /// The sums of `home`, to which shares will be added.
  template <class Exec>
  share_sums sums_at(const Exec& exec, const gradients<float>& home, home_memory<Comm>& memory) {
    share_sums out{home.dk, home.dv, {}, {}};
    if constexpr (compensating_backend<Exec>) {
      const auto cleared = [&](kept_buffer<Comm>& kept, const view<float, 4>& like) {
        const view<float, 4> tensor = kept.template tensor<float>(
            *comm_, like.extent(0), like.extent(1), like.extent(2), like.extent(3));
        backend<Exec>::zero(exec, tensor);
        return tensor;
      };
      out.dk_lost = cleared(memory.dk_lost, home.dk);
      out.dv_lost = cleared(memory.dv_lost, home.dv);
    }
    return out;
  }

  /// Adds shares of dk and dv for keys [first, …) of this rank, floats.
  template <class Exec>
  static void add_share(const Exec& exec, const view<const float, 4>& dk,
                        const view<const float, 4>& dv, const share_sums& sums, index_t first) {
    const auto at = [&](const view<float, 4>& sum) { return sum.slice(2, first, dk.extent(2)); };
    if constexpr (compensating_backend<Exec>) {
      backend<Exec>::add(exec, dk, at(sums.dk), at(sums.dk_lost));
      backend<Exec>::add(exec, dv, at(sums.dv), at(sums.dv_lost));
    } else {
      backend<Exec>::add(exec, dk, at(sums.dk));
      backend<Exec>::add(exec, dv, at(sums.dv));
    }
  }

  /// Of what home_gradients() made.
  template <class Exec, class G>
  static void round_gradients(const Exec& exec, const gradients<float>& home,
                              const gradients<G>& grad) {
    if constexpr (!std::is_same_v<G, float>) {
      const auto round = [&](const view<float, 4>& sum, const view<G, 4>& to) {
        if (sum) backend<Exec>::copy(exec, view<const float, 4>{sum}, to);
      };
      round(home.dq, grad.dq);
      round(home.dk, grad.dk);
      round(home.dv, grad.dv);
    }
  }

  map_shape map_of(index_t kv_len) const {
    return {sizes_.batch, sizes_.q_heads, q_size(), kv_len};
  }

  Comm* comm_;
  cp::shape sizes_;
  shards<QLayout, KvLayout> split_;
  Mask mask_;
  Score score_;
  options options_;
  cp::plan plan_;
  std::vector<comm::transfer> group_; // kept for its memory
  recorder recorder_;

private:
  /// Compares sizes before it checks them: a bad value on one rank is then an error on all.
  static void require_sizes(const char* call, Comm& comm, const cp::shape& sizes,
                            const shards<QLayout, KvLayout>& split, const options& opt) {
    const auto number = [](auto value) { return static_cast<std::uint64_t>(value); };
    const fact facts[] = {
        {"driver", fingerprint{}.add_text(call).value(), false},
        {"batch", number(sizes.batch)},
        {"q_heads", number(sizes.q_heads)},
        {"kv_heads", number(sizes.kv_heads)},
        {"qk_dim", number(sizes.qk_dim)},
        {"v_dim", number(sizes.v_dim)},
        {"query sequence", number(split.q.sequence())},
        {"key sequence", number(split.kv.sequence())},
        {"ranks of the query layout", number(split.q.ranks())},
        {"ranks of the key layout", number(split.kv.ranks())},
        {"query layout", layout_fingerprint(split.q), false},
        {"key layout", layout_fingerprint(split.kv), false},
        {"score modifier", type_fingerprint<Score>(), false},
        {"scale", std::bit_cast<std::uint32_t>(opt.scale), false},
    };
    require_agreement(comm, call, facts);
    const auto at_least = [&](index_t least, const char* what, index_t value) {
      maskring::detail::require(value >= least, call, ": ", what, " is ", value, ", expected ",
                                least, " or more");
    };
    at_least(0, "batch", sizes.batch);
    at_least(0, "q_heads", sizes.q_heads);
    at_least(0, "kv_heads", sizes.kv_heads);
    at_least(1, "qk_dim", sizes.qk_dim);
    at_least(1, "v_dim", sizes.v_dim);
    maskring::detail::require(sizes.q_heads == 0 ||
                                  (sizes.kv_heads > 0 && sizes.q_heads % sizes.kv_heads == 0),
                              call, ": q_heads is ", sizes.q_heads,
                              ", expected a multiple of kv_heads, which is ", sizes.kv_heads);
    maskring::detail::require(split.q.ranks() == comm.size(), call, ": the layout is for ",
                              split.q.ranks(), " ranks, expected the communicator's ", comm.size());
    maskring::detail::require(split.kv.ranks() == comm.size(), call, ": the key layout is for ",
                              split.kv.ranks(), " ranks, expected the communicator's ",
                              comm.size());
  }

  std::size_t element_bytes_ = 0;
};

} // namespace maskring::cp::detail
