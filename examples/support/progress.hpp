// SPDX-License-Identifier: Apache-2.0
// A line that shows how far work has got, for people at a terminal.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <string>
#include <thread>

#include <unistd.h>

namespace examples {

/// Writes "name: 42 %, 3 s" to the error stream while it lives, if that is a terminal and the work
/// takes longer than a second; the line is gone at the end.
class progress {
public:
  progress(std::string name, int pieces) : name_{std::move(name)}, pieces_{pieces} {
    if (::isatty(STDERR_FILENO)) writer_ = std::thread{[this] { write(); }};
  }
  progress(const progress&) = delete;
  ~progress() {
    if (!writer_.joinable()) return;
    {
      const std::lock_guard lock{mutex_};
      ended_ = true;
    }
    changed_.notify_all();
    writer_.join();
  }

  /// One more piece of the work is done. From any thread.
  void advance() { ++done_; }

private:
  void write() {
    using clock = std::chrono::steady_clock;
    const auto begin = clock::now();
    std::unique_lock lock{mutex_};
    bool written = false;
    for (auto wait = std::chrono::milliseconds{1000};
         !changed_.wait_for(lock, wait, [this] { return ended_; });
         wait = std::chrono::milliseconds{200}) {
      const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(clock::now() - begin);
      std::fprintf(stderr, "\r%s: %d %%, %d s\033[K", name_.c_str(), 100 * done_ / pieces_,
                   static_cast<int>(seconds.count()));
      std::fflush(stderr);
      written = true;
    }
    if (written) std::fputs("\r\033[K", stderr);
  }

  std::string name_;
  int pieces_;
  std::atomic<int> done_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
  std::thread writer_;
};

} // namespace examples
