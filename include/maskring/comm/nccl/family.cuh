// SPDX-License-Identifier: Apache-2.0
// A communicator with those split off it: they fail together, and one thread watches over them.
#pragma once

#include <maskring/comm/nccl/error.cuh>
#include <maskring/comm/nccl/stream_marks.cuh>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace maskring::comm::detail {

/// Work on a stream, which sets `progress` to 1 before it and to 2 after it.
struct watched_work {
  std::string operation;
  stream_marks::mark progress;
  std::optional<std::chrono::steady_clock::time_point> begun{};
};

/// Makes calls of NCCL for communicators of one device and one process, watches what they have put
/// into streams, and ends all of them when one fails.
///
/// NCCL's kernels wait for peers for ever, and so would whoever waits for the stream. The watching
/// thread aborts the communicators when work takes too long or NCCL reports an error; then kernels
/// return, and the next call throws what happened. The clock of an operation starts when the work
/// before it on its stream is done.
class nccl_family {
public:
  using clock = std::chrono::steady_clock;

  nccl_family(int rank, int size, std::chrono::milliseconds limit)
      : device_{current_device()}, rank_{rank}, size_{size}, limit_{limit}, watcher_{[this] {
          watch();
        }} {}
  nccl_family(const nccl_family&) = delete;
  ~nccl_family() {
    {
      const std::lock_guard lock{mutex_};
      stopping_ = true;
    }
    changed_.notify_all();
    watcher_.join();
  }

  int device() const { return device_; }

  void add(ncclComm_t comm) {
    const std::lock_guard lock{mutex_};
    comms_.push_back(comm);
  }
  /// False if the communicator has been aborted.
  bool remove(ncclComm_t comm) {
    const std::lock_guard lock{mutex_};
    return std::erase(comms_, comm) > 0;
  }
  /// Throws what has ended the family, if something has.
  void require_alive() const {
    const std::lock_guard lock{mutex_};
    if (failure_) std::rethrow_exception(failure_);
  }
  bool alive() const {
    const std::lock_guard lock{mutex_};
    return !failure_;
  }

  /// Makes the calls in `work` and waits until a non-blocking communicator has done with them.
  /// @throws nccl_error or timed_out, after ending the family.
  template <class Work>
  void call(ncclComm_t comm, const std::string& operation, bool blocking, Work work) {
    ncclResult_t status;
    if (blocking) {
      // Without the lock, so that the watching thread can abort a call that does not return.
      begin_call(operation);
      status = work();
      end_call();
    } else {
      const std::lock_guard lock{mutex_};
      if (failure_) std::rethrow_exception(failure_);
      status = work();
    }
    settle(comm, operation, status);
  }

  /// Waits until what a call has begun on `comm` has ended. Some calls (ncclCommSplit) return
  /// success while it is in progress, and the communicator must not be used until it says itself
  /// that it is ready.
  void settle(ncclComm_t comm, const std::string& operation, ncclResult_t status) {
    const clock::time_point begin = clock::now();
    if (status == ncclSuccess) status = ncclInProgress;
    while (status == ncclInProgress) {
      {
        const std::lock_guard lock{mutex_};
        if (failure_) std::rethrow_exception(failure_);
        const ncclResult_t asked = ncclCommGetAsyncError(comm, &status);
        if (asked != ncclSuccess) status = asked;
        if (status == ncclInProgress && clock::now() - begin > limit_) {
          end_all(std::make_exception_ptr(timed_out{operation, rank_, size_, limit_}));
          std::rethrow_exception(failure_);
        }
      }
      if (status == ncclInProgress) std::this_thread::sleep_for(std::chrono::microseconds{20});
    }
    if (status == ncclSuccess) return;
    const std::lock_guard lock{mutex_};
    if (!failure_) end_all(std::make_exception_ptr(nccl_error{status, operation, comm}));
    std::rethrow_exception(failure_);
  }

  /// Makes the calls in `work`, which put the operation into `stream`, as call(), and watches over
  /// what they have put there.
  template <class Work>
  void call_watched(ncclComm_t comm, const std::string& operation, bool blocking,
                    cudaStream_t stream, Work work) {
    const stream_marks::mark progress = watch_over(operation);
    stream_marks::set(stream, progress, 1);
    call(comm, operation, blocking, work);
    stream_marks::set(stream, progress, 2);
  }

  /// Waits on the host for what a stream holds. @throws what ended the family; cuda::error.
  void synchronize(cudaStream_t stream) const {
    for (;;) {
      require_alive();
      const cudaError_t status = cudaStreamQuery(stream);
      if (status == cudaSuccess) break;
      if (status != cudaErrorNotReady) require_cuda(status, "cudaStreamQuery");
      cudaGetLastError(); // "not ready" is no failure, and no launch's that comes next
      std::this_thread::sleep_for(std::chrono::microseconds{20});
    }
    require_alive();
  }

private:
  /// Waits for a free mark, where the host is that far ahead.
  stream_marks::mark watch_over(const std::string& operation) {
    std::unique_lock lock{mutex_};
    stream_marks::mark progress = nullptr;
    changed_.wait(lock, [&] { return failure_ || (progress = marks_.take()) != nullptr; });
    if (failure_) std::rethrow_exception(failure_);
    work_.push_back({operation, progress});
    changed_.notify_all();
    return progress;
  }

  void begin_call(const std::string& operation) {
    {
      const std::lock_guard lock{mutex_};
      if (failure_) std::rethrow_exception(failure_);
      calling_ = operation;
      calling_since_ = clock::now();
    }
    changed_.notify_all();
  }
  void end_call() {
    const std::lock_guard lock{mutex_};
    calling_.reset();
    if (failure_) std::rethrow_exception(failure_);
  }

  void watch() {
    cudaSetDevice(device_); // for what aborting calls
    std::unique_lock lock{mutex_};
    while (!stopping_) {
      if (failure_ || (work_.empty() && !calling_)) {
        changed_.wait(lock);
        continue;
      }
      changed_.wait_for(lock, std::chrono::milliseconds{2});
      if (!failure_) look();
    }
  }

  void look() {
    const clock::time_point now = clock::now();
    if (calling_ && now - calling_since_ > limit_) {
      return end_all(std::make_exception_ptr(timed_out{*calling_, rank_, size_, limit_}));
    }
    for (const ncclComm_t comm : comms_) {
      ncclResult_t status = ncclSuccess;
      if (ncclCommGetAsyncError(comm, &status) == ncclSuccess && status != ncclSuccess &&
          status != ncclInProgress) {
        const std::string operation = work_.empty() ? "NCCL" : work_.front().operation;
        return end_all(std::make_exception_ptr(nccl_error{status, operation, comm}));
      }
    }
    const std::size_t before = work_.size();
    std::erase_if(work_, [&](const watched_work& work) {
      const bool done = stream_marks::read(work.progress) == 2;
      if (done) marks_.give_back(work.progress);
      return done;
    });
    if (work_.size() < before) changed_.notify_all();
    for (watched_work& work : work_) {
      if (!work.begun) {
        if (stream_marks::read(work.progress) == 1) work.begun = now;
      } else if (now - *work.begun > limit_) {
        return end_all(std::make_exception_ptr(timed_out{work.operation, rank_, size_, limit_}));
      }
    }
  }

  void end_all(std::exception_ptr why) {
    failure_ = why;
    // The communicators split off last go first.
    for (auto comm = comms_.rbegin(); comm != comms_.rend(); ++comm) ncclCommAbort(*comm);
    comms_.clear();
    work_.clear();
    changed_.notify_all();
  }

  const int device_, rank_, size_;
  const std::chrono::milliseconds limit_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<ncclComm_t> comms_;
  std::deque<watched_work> work_;
  stream_marks marks_{4096}; // more than streams hold
  std::exception_ptr failure_;
  std::optional<std::string> calling_;
  clock::time_point calling_since_;
  bool stopping_ = false;
  std::thread watcher_; // last: it uses the others
};

} // namespace maskring::comm::detail
