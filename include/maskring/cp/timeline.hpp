// SPDX-License-Identifier: Apache-2.0
// What a driver did when: a record that Perfetto and chrome://tracing open.
#pragma once

#include <maskring/comm/concepts.hpp>
#include <maskring/cp/backend.hpp>

#include <chrono>
#include <cstdio>
#include <functional>
#include <map>
#include <mutex>
#include <ostream>
#include <string>
#include <vector>

namespace maskring::cp {

/// Collects the steps of drivers: what was computed, sent and received when, and what was skipped.
/// Ranks of one process can share one.
///
/// ```cpp
/// cp::timeline record;
/// ring.record(&record);
/// ring.forward(exec, in, out);
/// record.write(file);  // Chrome's trace format
/// ```
/// Host work is timed by the clock, device work by events, which are read when the trace is
/// written: that waits for the work. Not for use while a graph is captured.
class timeline {
public:
  /// Microseconds since this object was made; asked for when the trace is written.
  using instant = std::function<double()>;
  enum class lane { compute, send, receive };

  instant now() const {
    return [us = microseconds()] { return us; };
  }
  double microseconds() const {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin_)
        .count();
  }

  void add(int rank, lane where, std::string name, instant from, instant to,
           std::size_t bytes = 0) {
    const std::lock_guard lock{mutex_};
    spans_.push_back({rank, where, std::move(name), std::move(from), std::move(to), bytes});
  }

  /// Something that did not have to be done.
  void skip(int rank, std::string name, instant when) {
    const std::lock_guard lock{mutex_};
    spans_.push_back({rank, lane::compute, std::move(name), std::move(when), nullptr, 0});
  }

  /// What `make()` gave when `key` was first asked for; kept as long as this object.
  template <class T, class Make>
  std::shared_ptr<T> keep(const std::string& key, Make make) {
    const std::lock_guard lock{mutex_};
    std::shared_ptr<void>& kept = kept_[key];
    if (!kept) kept = make();
    return std::static_pointer_cast<T>(kept);
  }

  void clear() {
    const std::lock_guard lock{mutex_};
    spans_.clear();
  }

  /// A JSON array of trace events: a process a rank, a thread a lane.
  void write(std::ostream& out) const {
    const std::lock_guard lock{mutex_};
    constexpr const char* lanes[] = {"compute", "send", "receive"};
    out << "[";
    const char* separator = "\n";
    std::map<int, bool> named;
    char text[512];
    for (const span& s : spans_) {
      if (!named[s.rank]) {
        named[s.rank] = true;
        std::snprintf(text, sizeof(text),
                      "{\"ph\": \"M\", \"name\": \"process_name\", \"pid\": %d, "
                      "\"args\": {\"name\": \"rank %d\"}}",
                      s.rank, s.rank);
        out << separator << text;
        separator = ",\n";
        for (int l = 0; l < 3; ++l) {
          std::snprintf(text, sizeof(text),
                        "{\"ph\": \"M\", \"name\": \"thread_name\", \"pid\": %d, \"tid\": %d, "
                        "\"args\": {\"name\": \"%s\"}}",
                        s.rank, l, lanes[l]);
          out << separator << text;
        }
      }
      const int tid = static_cast<int>(s.where);
      const double from = s.from();
      if (!s.to) {
        std::snprintf(text, sizeof(text),
                      "{\"ph\": \"i\", \"s\": \"t\", \"name\": \"%.200s\", \"cat\": \"skipped\", "
                      "\"pid\": %d, \"tid\": %d, \"ts\": %.3f}",
                      s.name.c_str(), s.rank, tid, from);
      } else {
        std::snprintf(text, sizeof(text),
                      "{\"ph\": \"X\", \"name\": \"%.200s\", \"cat\": \"%s\", \"pid\": %d, "
                      "\"tid\": %d, \"ts\": %.3f, \"dur\": %.3f, \"args\": {\"bytes\": %llu}}",
                      s.name.c_str(), lanes[tid], s.rank, tid, from, max(s.to() - from, 0.0),
                      static_cast<unsigned long long>(s.bytes));
      }
      out << separator << text;
    }
    out << "\n]\n";
  }

private:
  struct span {
    int rank;
    lane where;
    std::string name;
    instant from, to; // no `to`: skipped
    std::size_t bytes;
  };

  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  mutable std::mutex mutex_;
  std::vector<span> spans_;
  std::map<std::string, std::shared_ptr<void>> kept_;
};

namespace detail {

/// A piece of work as a timeline names it.
struct step_label {
  const char* what = "";
  int step = -1;
  bool skipped = false; ///< there is nothing to compute
  std::string name() const {
    return step < 0 ? std::string{what} : std::string{what} + " step " + std::to_string(step);
  }
};

/// Starts, computes, waits, and records if there is a timeline.
class recorder {
public:
  void set(timeline* to, int rank) {
    timeline_ = to;
    rank_ = rank;
  }

  /// Sends and receives the group while `work` runs.
  template <class Exec, class Comm, class Work>
  void overlap(const Exec& exec, Comm& comm, std::span<const comm::transfer> group,
               const step_label& label, Work work) const {
    if (group.empty()) {
      compute(exec, label, work);
      return;
    }
    const auto queue = backend<Exec>::queue(exec);
    auto moving = comm.start(queue, group);
    if (!timeline_) {
      work();
      moving.wait(queue);
      return;
    }
    // Where the transport has a queue of its own, its messages are timed there.
    const auto of_messages = [&] {
      if constexpr (requires { moving.queue(); }) {
        return mark<Exec>(moving.queue());
      } else {
        return mark<Exec>(queue);
      }
    };
    const timeline::instant begin = of_messages();
    compute(exec, label, work);
    moving.wait(queue);
    const timeline::instant end = of_messages();
    std::size_t sent = 0, received = 0;
    for (const comm::transfer& t : group) {
      (t.direction == comm::transfer::way::send ? sent : received) += t.bytes;
    }
    if (sent > 0) {
      timeline_->add(rank_, timeline::lane::send, label.name(), begin, end, sent);
    }
    if (received > 0) {
      timeline_->add(rank_, timeline::lane::receive, label.name(), begin, end, received);
    }
  }

  template <class Exec, class Work>
  void compute(const Exec& exec, const step_label& label, Work work) const {
    if (!timeline_) {
      work();
      return;
    }
    const auto queue = backend<Exec>::queue(exec);
    timeline::instant begin = mark<Exec>(queue);
    work();
    if (label.skipped) {
      timeline_->skip(rank_, label.name() + " skipped", std::move(begin));
    } else {
      timeline_->add(rank_, timeline::lane::compute, label.name(), std::move(begin),
                     mark<Exec>(queue));
    }
  }

private:
  /// When what `queue` holds will be done.
  template <class Exec, class Queue>
  timeline::instant mark(const Queue& queue) const {
    if constexpr (requires { backend<Exec>::mark(*timeline_, queue); }) {
      return backend<Exec>::mark(*timeline_, queue);
    } else {
      return timeline_->now();
    }
  }
  timeline* timeline_ = nullptr;
  int rank_ = 0;
};

} // namespace detail
} // namespace maskring::cp
