// SPDX-License-Identifier: Apache-2.0
// A bounded stream of bytes from one thread to another, and how a thread waits for any of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>

namespace maskring::comm::detail {

/// Counts events that a thread may wait for. Read the count, look whether there is something to do,
/// and if not wait for the count to move on: nothing that happens in between is missed.
class signal {
public:
  std::uint64_t count() const { return count_.load(std::memory_order_acquire); }

  void raise() {
    {
      const std::lock_guard lock{mutex_};
      count_.fetch_add(1, std::memory_order_release);
    }
    moved_.notify_all();
  }

  void wait_beyond(std::uint64_t seen) {
    std::unique_lock lock{mutex_};
    moved_.wait(lock, [&] { return count_.load(std::memory_order_acquire) != seen; });
  }

private:
  std::mutex mutex_;
  std::condition_variable moved_;
  std::atomic<std::uint64_t> count_{0};
};

/// A circular buffer with one writer and one reader, without locks. Memory is taken at first use.
class mailbox {
public:
  explicit mailbox(std::size_t capacity) : capacity_{capacity} {}

  /// Copies as many bytes in as there is room for and returns their number. The writer's call.
  std::size_t put(const std::byte* from, std::size_t bytes) {
    if (!memory_) memory_.reset(new std::byte[capacity_]);
    const std::uint64_t written = written_.load(std::memory_order_relaxed);
    const std::uint64_t read = read_.load(std::memory_order_acquire);
    const std::size_t count = std::min<std::size_t>(bytes, capacity_ - (written - read));
    in_pieces(written, count, [&](std::size_t at, std::size_t done, std::size_t size) {
      std::memcpy(memory_.get() + at, from + done, size);
    });
    written_.store(written + count, std::memory_order_release);
    return count;
  }

  /// Copies at most `bytes` bytes out and returns their number. The reader's call.
  std::size_t take(std::byte* to, std::size_t bytes) {
    const std::uint64_t read = read_.load(std::memory_order_relaxed);
    const std::uint64_t written = written_.load(std::memory_order_acquire);
    const std::size_t count = std::min<std::size_t>(bytes, written - read);
    in_pieces(read, count, [&](std::size_t at, std::size_t done, std::size_t size) {
      std::memcpy(to + done, memory_.get() + at, size);
    });
    read_.store(read + count, std::memory_order_release);
    return count;
  }

  std::size_t waiting() const {
    return written_.load(std::memory_order_acquire) - read_.load(std::memory_order_acquire);
  }

private:
  template <class Copy>
  void in_pieces(std::uint64_t position, std::size_t count, Copy copy) const {
    const std::size_t at = position % capacity_;
    const std::size_t head = std::min(count, capacity_ - at);
    if (head > 0) copy(at, 0, head);
    if (count > head) copy(0, head, count - head);
  }

  std::size_t capacity_;
  std::unique_ptr<std::byte[]> memory_;
  std::atomic<std::uint64_t> written_{0}, read_{0};
};

} // namespace maskring::comm::detail
