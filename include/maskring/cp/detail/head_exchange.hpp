// SPDX-License-Identifier: Apache-2.0
// Tensors split by sequence become tensors split by heads, and back: an all-to-all of blocks.
#pragma once

#include <maskring/cp/detail/driver.hpp>
#include <maskring/cp/detail/heads.hpp>
#include <maskring/cp/detail/stretches.hpp>

#include <functional>

namespace maskring::cp::detail {

/// Where each rank's tokens stand in the sequence that the ranks have together.
struct places {
  std::vector<std::vector<stretch>> of; // [rank]
  index_t length = 0;

  index_t count(int rank) const {
    index_t sum = 0;
    for (const stretch& s : of[static_cast<std::size_t>(rank)]) sum += s.count;
    return sum;
  }
};

/// The tokens [0, size) of a view, at the places of a stretch.
template <class T>
view<T, 4> placed(const view<T, 4>& whole, const stretch& s) {
  view<T, 4> out = whole.slice(2, s.first, s.count);
  out.strides[2] *= s.step;
  return out;
}

/// A tensor without dim, with dim 1.
template <class T>
view<T, 4> with_dim(const view<T, 3>& rows) {
  return {rows.data,
          {rows.extent(0), rows.extent(1), rows.extent(2), 1},
          {rows.stride(0), rows.stride(1), rows.stride(2), 1}};
}

template <class Comm>
struct exchange_memory {
  kept_buffer<Comm> leaving, arriving;
};

/// One all-to-all of several tensors at once. Add tensors, then run().
template <class Comm, class Exec>
class head_exchange {
  using machine = backend<Exec>;

public:
  head_exchange(Comm& comm, const Exec& exec, std::vector<comm::transfer>& group,
                const recorder& record)
      : comm_{comm}, exec_{exec}, group_{group}, recorder_{record} {
    group_.clear();
  }

  /// Rank p gets heads `heads(p)` of `local` [b, all heads, own tokens, dim]; `whole` [b, own
  /// heads, all tokens, dim] is put together from what arrives.
  template <class T, class Heads>
  void to_heads(exchange_memory<Comm>& memory, const view<const T, 4>& local,
                const view<T, 4>& whole, Heads heads, const places& where) {
    const index_t width = local.extent(0) * local.extent(3);
    const index_t own_heads = whole.extent(1);
    const bool packed = is_packed(local.slice(1, 0, own_heads));
    T* leaving = memory.leaving.template at_least<T>(
        comm_, packed ? 0 : width * local.extent(2) * own_heads * (comm_.size() - 1));
    T* arriving = memory.arriving.template at_least<T>(
        comm_, width * (where.length - where.count(comm_.rank())) * own_heads);
    for_peers([&](int to, int from) {
      const interval theirs = heads(to);
      send(to, local.slice(1, theirs.lo, theirs.size()), leaving);
      const view<T, 4> block = receive<T>(
          from, {local.extent(0), own_heads, where.count(from), local.extent(3)}, arriving);
      after_.push_back([=, this, &where] { spread(view<const T, 4>{block}, whole, where, from); });
    });
    const interval mine = heads(comm_.rank());
    meanwhile_.push_back([=, this, &where] {
      spread(local.slice(1, mine.lo, mine.size()), whole, where, comm_.rank());
    });
  }

  /// The reverse: from `whole` [b, own heads, all tokens, dim] to `local` [b, all heads, own
  /// tokens, dim], which travels in the type of `local`. With `add` it is added, and of heads that
  /// several ranks have the sum arrives.
  template <class S, class T, class Heads>
  void to_sequence(exchange_memory<Comm>& memory, const view<const S, 4>& whole,
                   const view<T, 4>& local, Heads heads, const places& where, bool add = false) {
    const index_t width = local.extent(0) * local.extent(3);
    const index_t own_heads = whole.extent(1);
    T* leaving = memory.leaving.template at_least<T>(comm_, width * where.length * own_heads);
    T* arriving = memory.arriving.template at_least<T>(comm_, width * local.extent(2) * own_heads *
                                                                  (comm_.size() - 1));
    const auto put = [=, this](const view<const T, 4>& block, int from) {
      const interval theirs = heads(from);
      const view<T, 4> place = local.slice(1, theirs.lo, theirs.size());
      if constexpr (std::is_same_v<T, float>) {
        if (add) return machine::add(exec_, block, place);
      }
      machine::copy(exec_, block, place);
    };
    for_peers([&](int to, int from) {
      const view<T, 4> out =
          take<T>({local.extent(0), own_heads, where.count(to), local.extent(3)}, leaving);
      collect(whole, out, where, to);
      group_.push_back(comm::send(to, out.data, out.size()));
      const interval theirs = heads(from);
      const view<T, 4> block = receive<T>(
          from, {local.extent(0), theirs.size(), local.extent(2), local.extent(3)}, arriving);
      after_.push_back([=] { put(block, from); });
    });
    // Packed first, so that the own part is rounded and added like any other.
    const view<T, 4> own =
        take<T>({local.extent(0), own_heads, where.count(comm_.rank()), local.extent(3)}, leaving);
    meanwhile_.push_back([=, this, &where] {
      collect(whole, own, where, comm_.rank());
      put(own, comm_.rank());
    });
  }

  void run(const char* what) {
    const auto do_all = [](const std::vector<std::function<void()>>& work) {
      for (const auto& f : work) f();
    };
    recorder_.overlap(exec_, comm_, group_, {what}, [&] { do_all(meanwhile_); });
    do_all(after_);
  }

private:
  /// In an order in which no two ranks send to the same one at a time.
  template <class Visit>
  void for_peers(Visit visit) const {
    const int rank = comm_.rank(), ranks = comm_.size();
    for (int step = 1; step < ranks; ++step) {
      visit((rank + step) % ranks, (rank + ranks - step) % ranks);
    }
  }

  template <class T>
  static view<T, 4> take(const index_t (&shape)[4], T*& memory) {
    const view<T, 4> out{memory, shape};
    memory += out.size();
    return out;
  }

  template <class T>
  void send(int to, const view<const T, 4>& part, T*& leaving) {
    if (is_packed(part)) {
      group_.push_back(comm::send(to, part.data, part.size()));
      return;
    }
    const view<T, 4> out =
        take({part.extent(0), part.extent(1), part.extent(2), part.extent(3)}, leaving);
    machine::copy(exec_, part, out);
    group_.push_back(comm::send(to, out.data, out.size()));
  }

  template <class T>
  view<T, 4> receive(int from, const index_t (&shape)[4], T*& arriving) {
    const view<T, 4> block = take(shape, arriving);
    group_.push_back(comm::receive(from, block.data, block.size()));
    return block;
  }

  template <class T>
  void spread(const view<const T, 4>& block, const view<T, 4>& whole, const places& where,
              int rank) const {
    for (const stretch& s : where.of[static_cast<std::size_t>(rank)]) {
      machine::copy(exec_, block.slice(2, s.position, s.count), placed(whole, s));
    }
  }
  template <class S, class T>
  void collect(const view<const S, 4>& whole, const view<T, 4>& block, const places& where,
               int rank) const {
    for (const stretch& s : where.of[static_cast<std::size_t>(rank)]) {
      machine::copy(exec_, placed(whole, s), block.slice(2, s.position, s.count));
    }
  }

  Comm& comm_;
  const Exec& exec_;
  std::vector<comm::transfer>& group_;
  const recorder& recorder_;
  std::vector<std::function<void()>> meanwhile_, after_;
};

} // namespace maskring::cp::detail
