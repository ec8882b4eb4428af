// SPDX-License-Identifier: Apache-2.0
// The keys and values on their way round the ring, or where their owners hold them, as one rank
// sees them.
#pragma once

#include <maskring/cp/detail/driver.hpp>

#include <algorithm>
#include <cstring>

namespace maskring::cp::detail {

/// Where keys or values arrive (two buffers in turn: one is filled while the other is worked on and
/// passed on), and where a part of them, or of the rank's own, is packed that is sent alone. At
/// step 0 only one of the two is in use, and the other takes the part.
template <class Comm>
struct rotation_memory {
  kept_buffer<Comm> arriving[2];
  kept_buffer<Comm> packed, packed_own;
};

/// What the rank holds at the current step of one pass round the ring.
///
/// Where ranks share memory nothing moves: each reads the shards of the others when their owners
/// have begun, and adds to their gradients when the rank that did so before it has done. Word of
/// that goes round as empty messages.
template <class Comm, class Exec, class T>
class rotation {
public:
  /// Sums of the gradients of keys and of values.
  struct gradient_sums {
    view<float, 4> dk, dv;
  };

  /// @param sums of k and v, in a backward pass. There they are given also by a rank without keys,
  ///        whose tensors have no memory: it takes its turn.
  rotation(Comm& comm, const Exec& exec, const cp::plan& road, rotation_memory<Comm>& keys,
           rotation_memory<Comm>& values, view<const T, 4> k, view<const T, 4> v,
           const std::optional<gradient_sums>& sums = {})
      : comm_{comm},
        exec_{exec},
        plan_{road},
        adds_{sums.has_value()},
        held_{0, k.extent(2)},
        keys_{keys, k},
        values_{values, v} {
    if constexpr (comm::memory_sharing<Comm>) {
      if (!comm.shares_memory()) return;
      const shard_tensors mine{k, v, sums.value_or(gradient_sums{})};
      const std::vector<std::byte> bytes = comm.share(std::as_bytes(std::span{&mine, 1}));
      shards_.resize(static_cast<std::size_t>(comm.size()), mine);
      for (std::size_t i = 0; i < shards_.size(); ++i) {
        std::memcpy(static_cast<void*>(&shards_[i]), bytes.data() + i * sizeof(mine), sizeof(mine));
      }
      if (!adds_) {
        exchange_word([&](int reader) { return needs(reader, comm_.rank()); },
                      [&](int owner) { return needs(comm_.rank(), owner); });
      }
    }
  }

  bool in_place() const { return !shards_.empty(); }

  view<const T, 4> keys(const interval& part) const { return cut(keys_.tensor, part); }
  view<const T, 4> values(const interval& part) const { return cut(values_.tensor, part); }

  /// Whether `fits(k, v)` holds for all tensors that steps work on, or for others that lie alike.
  template <class Fits>
  bool all_fit(Fits fits) const {
    if (in_place()) {
      return std::all_of(shards_.begin(), shards_.end(), [&](const shard_tensors& s) {
        return s.k.extent(2) == 0 || fits(s.k, s.v);
      });
    }
    const auto arrived = [](const view<const T, 4>& own) {
      return view<const T, 4>{own.data,
                              {own.extent(0), own.extent(1), own.extent(2), own.extent(3)}};
    };
    return fits(keys_.own, values_.own) &&
           (comm_.size() == 1 || fits(arrived(keys_.own), arrived(values_.own)));
  }

  /// In place: the sums of the gradients of what the rank works on.
  std::pair<view<float, 4>, view<float, 4>> sums(int step, const interval& part) const {
    const gradient_sums& at = shard_at(step).sums;
    return {at.dk.slice(2, part.lo, part.size()), at.dv.slice(2, part.lo, part.size())};
  }

  /// Adds the messages that prepare step + 1: what the plan's sources send.
  void post(int step, std::vector<comm::transfer>& group) {
    if (in_place()) return;
    const int rank = comm_.rank(), ranks = comm_.size();
    const int next = (rank + 1) % ranks, distant = (rank + step + 1) % ranks;
    const int shard = plan_.shard_at(rank, step), coming = plan_.shard_at(rank, step + 1);
    for (side* s : {&keys_, &values_}) {
      if (plan_.source(next, shard) == rank) {
        post_send(next, cut(s->tensor, plan_.needed(next, shard)),
                  step == 0 ? s->memory.arriving[1] : s->memory.packed, group);
      }
      if (step > 0 && plan_.source(distant, rank) == rank) {
        const interval& part = plan_.needed(distant, rank);
        post_send(distant, s->own.slice(2, part.lo, part.size()), s->memory.packed_own, group);
      }
      const interval& part = plan_.needed(rank, coming);
      if (part.empty()) continue;
      s->next = like(s->own, s->memory.arriving[step % 2], part.size());
      group.push_back(comm::receive(plan_.source(rank, coming), s->next.data, s->next.size()));
    }
  }

  /// What has arrived is now held.
  void advance(int step) {
    if (in_place()) {
      if (adds_) hand_on();
      keys_.tensor = shard_at(step + 1).k;
      values_.tensor = shard_at(step + 1).v;
      held_ = {0, keys_.tensor.extent(2)};
      return;
    }
    held_ = plan_.needed(comm_.rank(), plan_.shard_at(comm_.rank(), step + 1));
    if (held_.empty()) return;
    for (side* s : {&keys_, &values_}) s->tensor = s->next;
  }

  /// After the last step: what this rank gave is its own again.
  void finish() {
    if (!in_place()) return;
    if (adds_) {
      hand_on();
    } else {
      exchange_word([&](int owner) { return needs(comm_.rank(), owner); },
                    [&](int reader) { return needs(reader, comm_.rank()); });
    }
  }

private:
  struct shard_tensors {
    view<const T, 4> k, v;
    gradient_sums sums;
  };
  const shard_tensors& shard_at(int step) const {
    return shards_[static_cast<std::size_t>(plan_.shard_at(comm_.rank(), step))];
  }

  bool needs(int rank, int shard) const { return !plan_.needed(rank, shard).empty(); }

  template <class Tells, class Hears>
  void exchange_word(Tells tells, Hears hears) {
    detail::exchange_word(exec_, comm_, tells, hears);
  }

  /// Who adds to gradients takes turns: waits for the rank before, and tells the next one.
  void hand_on() {
    const int ranks = comm_.size(), next = (comm_.rank() + 1) % ranks;
    const int before = (comm_.rank() + ranks - 1) % ranks;
    exchange_word([&](int peer) { return peer == next; }, [&](int peer) { return peer == before; });
  }

  struct side {
    side(rotation_memory<Comm>& kept, view<const T, 4> local)
        : memory{kept}, own{local}, tensor{local} {}
    rotation_memory<Comm>& memory;
    view<const T, 4> own, tensor;
    view<T, 4> next;
  };

  view<const T, 4> cut(const view<const T, 4>& tensor, const interval& part) const {
    return part.empty() ? tensor.slice(2, 0, 0) : tensor.slice(2, part.lo - held_.lo, part.size());
  }

  view<T, 4> like(const view<const T, 4>& tensor, kept_buffer<Comm>& memory, index_t length) {
    return memory.template tensor<T>(comm_, tensor.extent(0), tensor.extent(1), length,
                                     tensor.extent(3));
  }

  void post_send(int to, view<const T, 4> part, kept_buffer<Comm>& packed,
                 std::vector<comm::transfer>& group) {
    if (part.extent(2) == 0) return;
    if (!is_packed(part)) {
      const view<T, 4> copy = like(part, packed, part.extent(2));
      backend<Exec>::copy(exec_, part, copy);
      part = copy;
    }
    group.push_back(comm::send(to, part.data, part.size()));
  }

  Comm& comm_;
  const Exec& exec_;
  const cp::plan& plan_;
  bool adds_;
  interval held_;
  side keys_, values_;
  std::vector<shard_tensors> shards_; // by rank, where ranks share memory
};

} // namespace maskring::cp::detail
