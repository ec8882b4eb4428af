// SPDX-License-Identifier: Apache-2.0
// The keys and values on their way round the ring, as one rank sees them.
#pragma once

#include <maskring/cp/detail/driver.hpp>

namespace maskring::cp::detail {

/// Where keys or values arrive (two buffers in turn: one is filled while the other is worked on and
/// passed on) and where a part of them is packed that is passed on alone.
template <class Comm>
struct rotation_memory {
  kept_buffer<Comm> arriving[2];
  kept_buffer<Comm> packed;
};

/// What the rank holds at the current step of one pass round the ring.
template <class Comm, class Exec, class T>
class rotation {
public:
  rotation(Comm& comm, const Exec& exec, const cp::plan& road, rotation_memory<Comm>& keys,
           rotation_memory<Comm>& values, view<const T, 4> k, view<const T, 4> v)
      : comm_{comm}, exec_{exec}, plan_{road}, held_{0, k.extent(2)}, keys_{keys, k},
        values_{values, v} {}

  view<const T, 4> keys(const interval& part) const { return cut(keys_.tensor, part); }
  view<const T, 4> values(const interval& part) const { return cut(values_.tensor, part); }

  /// Adds the messages that prepare step + 1: what is held moves on, the next shard arrives.
  void post(int step, std::vector<comm::transfer>& group) {
    const int rank = comm_.rank(), ranks = comm_.size();
    const interval leaving = plan_.forwarded(plan_.shard_at(rank, step), step);
    const interval coming = arriving_after(step);
    for (side* s : {&keys_, &values_}) {
      if (!leaving.empty()) {
        const view<const T, 4> part = packed(*s, cut(s->tensor, leaving));
        group.push_back(comm::send((rank + 1) % ranks, part.data, part.size()));
      }
      if (!coming.empty()) {
        s->next = arrival(*s, step, coming.size());
        group.push_back(comm::receive((rank + ranks - 1) % ranks, s->next.data, s->next.size()));
      }
    }
  }

  /// What has arrived is now held.
  void advance(int step) {
    held_ = arriving_after(step);
    if (held_.empty()) return;
    for (side* s : {&keys_, &values_}) s->tensor = s->next;
  }

private:
  struct side {
    side(rotation_memory<Comm>& kept, view<const T, 4> local) : memory{kept}, tensor{local} {}
    rotation_memory<Comm>& memory;
    view<const T, 4> tensor;
    view<T, 4> next;
  };

  interval arriving_after(int step) const {
    return plan_.forwarded(plan_.shard_at(comm_.rank(), step + 1), step);
  }

  view<const T, 4> cut(const view<const T, 4>& tensor, const interval& part) const {
    return part.empty() ? tensor.slice(2, 0, 0) : tensor.slice(2, part.lo - held_.lo, part.size());
  }

  view<T, 4> arrival(side& s, int step, index_t length) {
    const view<const T, 4>& like = s.tensor;
    return s.memory.arriving[step % 2].template tensor<T>(comm_, like.extent(0), like.extent(1),
                                                          length, like.extent(3));
  }

  view<const T, 4> packed(side& s, const view<const T, 4>& part) {
    if (is_packed(part)) return part;
    const view<T, 4> copy = s.memory.packed.template tensor<T>(
        comm_, part.extent(0), part.extent(1), part.extent(2), part.extent(3));
    backend<Exec>::copy(exec_, part, copy);
    return copy;
  }

  Comm& comm_;
  const Exec& exec_;
  const cp::plan& plan_;
  interval held_;
  side keys_, values_;
};

}  // namespace maskring::cp::detail
