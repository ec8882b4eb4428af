// SPDX-License-Identifier: Apache-2.0
// What ranks that are threads of one process share: a bounded mailbox for each pair, and failures.
#pragma once

#include <maskring/comm/concepts.hpp>
#include <maskring/comm/detail/mailbox.hpp>
#include <maskring/core/errors.hpp>

#include <deque>
#include <exception>

namespace maskring::comm {

/// Bytes and messages that were sent, per sender and receiver.
struct traffic {
  struct cell {
    std::uint64_t bytes = 0, messages = 0;
    friend bool operator==(cell, cell) = default;
  };
  int ranks = 0;
  std::vector<cell> cells; ///< [sender · ranks + receiver]

  const cell& between(int from, int to) const {
    return cells[static_cast<std::size_t>(from) * static_cast<std::size_t>(ranks) +
                 static_cast<std::size_t>(to)];
  }
  std::uint64_t bytes() const {
    std::uint64_t sum = 0;
    for (const cell& c : cells) sum += c.bytes;
    return sum;
  }
};

/// What the ranks of one `threads` communicator share. Must outlive their handles.
class thread_group {
public:
  /// @param mailbox_bytes of each pair of ranks; longer messages pass through in pieces.
  /// @throws std::invalid_argument for no ranks or mailboxes without room.
  explicit thread_group(int ranks, std::size_t mailbox_bytes = std::size_t{1} << 20)
      : ranks_{ranks} {
    maskring::detail::require(ranks > 0, "thread_group: ranks is ", ranks, ", expected 1 or more");
    maskring::detail::require(mailbox_bytes > 0, "thread_group: mailbox_bytes is 0, expected more");
    for (int i = 0; i < ranks; ++i) ranks_state_.emplace_back();
    for (int i = 0; i < ranks * ranks; ++i) pairs_.emplace_back(mailbox_bytes);
  }

  int size() const { return ranks_; }

  /// Says that a rank has ended by an error: from now on the calls of all others throw rank_failed.
  /// Only the first failure counts.
  void fail(int rank, std::exception_ptr error, const std::string& message) {
    {
      const std::lock_guard lock{failure_mutex_};
      if (failed_rank_.load() >= 0) return;
      failure_ = error;
      failure_message_ = message;
      failed_rank_.store(rank);
    }
    wake_all();
  }

  /// Says that a rank will send and receive no more: who waits for it gets an error.
  void finish(int rank) {
    at(rank).finished.store(true);
    wake_all();
  }

  /// The first failure, or null.
  std::exception_ptr failure() const {
    const std::lock_guard lock{failure_mutex_};
    return failure_;
  }

  traffic sent() const {
    traffic out{ranks_, {}};
    for (const pair& p : pairs_) out.cells.push_back({p.bytes.load(), p.messages.load()});
    return out;
  }

  /// @throws mismatch if a message was sent that nobody received.
  void require_all_received() const {
    for (int from = 0; from < ranks_; ++from) {
      for (int to = 0; to < ranks_; ++to) {
        const std::size_t left = between(from, to).box.waiting();
        if (left == 0) continue;
        throw mismatch{"maskring: comm: rank " + std::to_string(to) + " ended without receiving " +
                       std::to_string(left) + " bytes from rank " + std::to_string(from)};
      }
    }
  }

private:
  friend class threads;

  struct state {
    detail::signal changed;
    std::atomic<bool> finished{false};
  };
  struct pair {
    explicit pair(std::size_t capacity) : box{capacity} {}
    detail::mailbox box;
    std::atomic<std::uint64_t> bytes{0}, messages{0};
  };

  state& at(int rank) { return ranks_state_[static_cast<std::size_t>(rank)]; }
  pair& between(int from, int to) { return pairs_[static_cast<std::size_t>(from * ranks_ + to)]; }
  const pair& between(int from, int to) const {
    return pairs_[static_cast<std::size_t>(from * ranks_ + to)];
  }
  void wake_all() {
    for (state& s : ranks_state_) s.changed.raise();
  }
  void require_alive() const {
    if (failed_rank_.load(std::memory_order_acquire) < 0) return;
    const std::lock_guard lock{failure_mutex_};
    throw rank_failed{failed_rank_.load(), failure_message_};
  }

  int ranks_;
  std::deque<state> ranks_state_;
  std::deque<pair> pairs_;
  mutable std::mutex failure_mutex_;
  std::atomic<int> failed_rank_{-1};
  std::exception_ptr failure_;
  std::string failure_message_;
};

} // namespace maskring::comm
