// SPDX-License-Identifier: Apache-2.0
// Threads for one call: started, joined, and their exceptions handed to the caller.
#pragma once

#include <maskring/core/range.hpp>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace maskring::cpu::detail {

/// Items 0 … count − 1, handed out in ascending order to whoever asks.
class work_items {
public:
  explicit work_items(index_t count) : count_{count} {}

  index_t count() const { return count_; }

  /// False when none is left, or when another worker has failed.
  bool take(index_t& item) {
    if (failed()) return false;
    item = next_.fetch_add(1, std::memory_order_relaxed);
    return item < count_;
  }

  bool failed() const { return failed_.load(std::memory_order_relaxed); }

  void fail(std::exception_ptr error) {
    const std::lock_guard lock{mutex_};
    if (!error_) error_ = std::move(error);
    failed_.store(true, std::memory_order_relaxed);
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

private:
  index_t count_;
  std::atomic<index_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr error_;
};

/// Runs `worker()` on up to `threads` threads, of which the caller is one, and returns when all
/// have. Workers take from `items` until there are none. The first exception is thrown to the
/// caller.
template <class Worker>
void run_workers(int threads, work_items& items, const Worker& worker) {
  const auto guarded = [&] {
    try {
      worker();
    } catch (...) {
      items.fail(std::current_exception());
    }
  };
  {
    std::vector<std::jthread> team;
    try {
      while (static_cast<int>(team.size()) + 1 < threads) team.emplace_back(guarded);
    } catch (const std::system_error&) {
      // The system has no more threads to give: those that there are do the work.
    }
    guarded();
  }
  items.rethrow();
}

/// How many threads a call should use: as many as allowed (0 stands for all processors), but not so
/// many that starting one costs more than its share of the work.
inline int useful_threads(int allowed, index_t items, double operations) {
  constexpr double worth_a_thread = 4e6;
  const int most = allowed > 0 ? allowed : static_cast<int>(std::thread::hardware_concurrency());
  const double useful = std::min(static_cast<double>(items), 1 + operations / worth_a_thread);
  return std::max(1, static_cast<int>(std::min(static_cast<double>(most), useful)));
}

/// Uninitialised floats on a cache line of their own.
class scratch {
public:
  scratch() = default;
  explicit scratch(index_t count)
      : data_{static_cast<float*>(::operator new(
            static_cast<std::size_t>(std::max<index_t>(count, 1)) * sizeof(float), alignment))} {}
  float* data() const { return data_.get(); }

private:
  static constexpr std::align_val_t alignment{64};
  struct release {
    void operator()(float* pointer) const { ::operator delete(pointer, alignment); }
  };
  std::unique_ptr<float, release> data_;
};

} // namespace maskring::cpu::detail
