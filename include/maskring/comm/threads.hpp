// SPDX-License-Identifier: Apache-2.0
// Ranks that are threads of one process; messages are copied through bounded mailboxes.
#pragma once

#include <maskring/comm/concepts.hpp>
#include <maskring/comm/thread_group.hpp>
#include <maskring/core/errors.hpp>

#include <new>
#include <thread>

namespace maskring::comm {

/// The handle of one rank of a thread_group; for use by one thread. Models every concept of
/// comm/concepts.hpp with host_queue.
class threads {
  struct message;

public:
  threads(thread_group& group, int rank) : group_{&group}, rank_{rank} {
    maskring::detail::require(rank >= 0 && rank < group.size(), "threads: rank is ", rank,
                              ", expected 0 to ", group.size() - 1);
  }

  int rank() const { return rank_; }
  int size() const { return group_->size(); }

  /// Host memory, aligned to cache lines, not initialised.
  class buffer {
  public:
    buffer() = default;
    explicit buffer(std::size_t bytes)
        : data_{::operator new (std::max<std::size_t>(bytes, 1), std::align_val_t{64})} {}
    void* data() const { return data_.get(); }

  private:
    struct release {
      void operator()(void* p) const { ::operator delete (p, std::align_val_t{64}); }
    };
    std::unique_ptr<void, release> data_;
  };
  buffer allocate(std::size_t bytes) { return buffer{bytes}; }

  /// A group in flight. What does not fit the mailboxes at once moves on in wait().
  class pending {
  public:
    void wait(host_queue) {
      while (!threads{*group_, rank_}.advance(messages_, true)) {
      }
    }

  private:
    friend class threads;
    pending(thread_group& group, int rank, std::vector<message> messages)
        : group_{&group}, rank_{rank}, messages_{std::move(messages)} {}
    thread_group* group_;
    int rank_;
    std::vector<message> messages_;
  };

  /// @throws std::invalid_argument for a peer that does not exist; what point_to_point says.
  pending start(host_queue, std::span<const transfer> group) {
    std::vector<message> messages;
    for (const transfer& t : group) {
      maskring::detail::require(t.peer >= 0 && t.peer < size(), "comm: peer is ", t.peer,
                                ", expected 0 to ", size() - 1);
      messages.push_back({t, 0, 0, 0});
    }
    group_->require_alive();
    advance(messages, false);
    return {*group_, rank_, std::move(messages)};
  }

  std::vector<std::byte> share(std::span<const std::byte> mine) {
    std::vector<std::byte> all(mine.size() * static_cast<std::size_t>(size()));
    all_gather({}, mine.data(), all.data(), mine.size());
    return all;
  }

  void all_gather(host_queue queue, const void* mine, void* all, std::size_t bytes) {
    exchange(
        queue, [&](int) { return static_cast<const std::byte*>(mine); }, all, bytes);
  }

  void all_to_all(host_queue queue, const void* from, void* to, std::size_t bytes) {
    const auto part = [&](int rank) {
      return static_cast<const std::byte*>(from) + static_cast<std::size_t>(rank) * bytes;
    };
    exchange(queue, part, to, bytes);
  }

  void reduce_scatter(host_queue queue, const float* from, float* to, index_t count) {
    const auto n = static_cast<std::size_t>(count);
    std::vector<float> parts(n * static_cast<std::size_t>(size()));
    all_to_all(queue, from, parts.data(), n * sizeof(float));
    std::fill_n(to, n, 0.0f);
    for (std::size_t i = 0; i < parts.size(); ++i) to[i % n] += parts[i];
  }

private:
  static constexpr std::size_t header_bytes = sizeof(std::uint64_t);

  /// A transfer and how far it has got: each message is its length, then its bytes.
  struct message {
    transfer what;
    std::uint64_t length;
    std::size_t header_done, done;
    bool complete() const { return header_done == header_bytes && done == what.bytes; }
  };

  template <class Part>
  void exchange(host_queue queue, Part part, void* to, std::size_t bytes) {
    std::vector<transfer> group;
    for (int peer = 0; peer < size(); ++peer) {
      const auto n = static_cast<index_t>(bytes);
      group.push_back(send(peer, part(peer), n));
      group.push_back(
          receive(peer, static_cast<std::byte*>(to) + static_cast<std::size_t>(peer) * bytes, n));
    }
    start(queue, group).wait(queue);
  }

  /// Moves each message as far as it goes; true when all are complete. Messages with the same peer
  /// and direction go one after the other.
  bool advance(std::vector<message>& messages, bool block) {
    for (;;) {
      const std::uint64_t seen = group_->at(rank_).changed.count();
      group_->require_alive();
      bool moved = false, complete = true;
      for (std::size_t i = 0; i < messages.size(); ++i) {
        message& m = messages[i];
        if (m.complete() || behind_another(messages, i)) continue;
        // Before looking into the mailbox, so that what a finished peer has left there is not
        // missed.
        const bool peer_finished = group_->at(m.what.peer).finished.load();
        const bool progress = m.what.direction == transfer::way::send ? push(m) : pull(m);
        moved = moved || progress;
        if (m.complete()) continue;
        complete = false;
        if (peer_finished && !progress && m.what.peer != rank_) throw_finished(m);
      }
      for (const message& m : messages) complete = complete && m.complete();
      if (complete || (!moved && !block)) return complete;
      if (!moved) group_->at(rank_).changed.wait_beyond(seen);
    }
  }

  static bool behind_another(const std::vector<message>& messages, std::size_t i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (!messages[j].complete() && messages[j].what.peer == messages[i].what.peer &&
          messages[j].what.direction == messages[i].what.direction) {
        return true;
      }
    }
    return false;
  }

  bool push(message& m) {
    thread_group::pair& pair = group_->between(rank_, m.what.peer);
    m.length = m.what.bytes;
    const std::size_t before = m.header_done + m.done;
    m.header_done +=
        pair.box.put(bytes_of(&m.length) + m.header_done, header_bytes - m.header_done);
    if (m.header_done == header_bytes) {
      m.done += pair.box.put(bytes_of(m.what.data) + m.done, m.what.bytes - m.done);
    }
    if (m.complete()) {
      pair.bytes += m.what.bytes;
      pair.messages += 1;
    }
    return raise_if(m.header_done + m.done != before, m.what.peer);
  }

  bool pull(message& m) {
    thread_group::pair& pair = group_->between(m.what.peer, rank_);
    const std::size_t before = m.header_done + m.done;
    m.header_done +=
        pair.box.take(bytes_of(&m.length) + m.header_done, header_bytes - m.header_done);
    if (m.header_done == header_bytes) {
      if (m.length != m.what.bytes) {
        throw mismatch{"maskring: comm: rank " + std::to_string(rank_) + " expects " +
                       std::to_string(m.what.bytes) + " bytes from rank " +
                       std::to_string(m.what.peer) + ", which sent " + std::to_string(m.length)};
      }
      m.done += pair.box.take(bytes_of(m.what.data) + m.done, m.what.bytes - m.done);
    }
    return raise_if(m.header_done + m.done != before, m.what.peer);
  }

  bool raise_if(bool moved, int peer) {
    if (moved) group_->at(peer).changed.raise();
    return moved;
  }

  [[noreturn]] void throw_finished(const message& m) const {
    const bool sending = m.what.direction == transfer::way::send;
    throw mismatch{"maskring: comm: rank " + std::to_string(rank_) +
                   (sending ? " sends " : " waits for ") + std::to_string(m.what.bytes) +
                   (sending ? " bytes to rank " : " bytes from rank ") +
                   std::to_string(m.what.peer) + ", which has ended"};
  }

  static std::byte* bytes_of(void* data) { return static_cast<std::byte*>(data); }

  thread_group* group_;
  int rank_;
};

/// Runs `work(threads& comm)` on `ranks` threads, waits for all and returns what was sent.
///
/// When a rank throws, the calls of the others throw rank_failed, naming it; the first error itself
/// is thrown to the caller.
/// @throws mismatch if a message was left unreceived.
template <class Work>
traffic run_ranks(int ranks, Work&& work, std::size_t mailbox_bytes = std::size_t{1} << 20) {
  thread_group group{ranks, mailbox_bytes};
  const auto body = [&](int rank) {
    try {
      threads comm{group, rank};
      work(comm);
      group.finish(rank);
    } catch (const std::exception& error) {
      group.fail(rank, std::current_exception(), error.what());
    } catch (...) {
      group.fail(rank, std::current_exception(), "an exception that is no std::exception");
    }
  };
  std::vector<std::thread> running;
  running.reserve(static_cast<std::size_t>(ranks));
  try {
    for (int rank = 0; rank < ranks; ++rank) running.emplace_back(body, rank);
  } catch (const std::exception& error) { // no more threads to be had
    group.fail(static_cast<int>(running.size()), std::current_exception(), error.what());
  }
  for (std::thread& t : running) t.join();
  if (group.failure()) std::rethrow_exception(group.failure());
  group.require_all_received();
  return group.sent();
}

} // namespace maskring::comm
