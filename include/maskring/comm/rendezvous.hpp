// SPDX-License-Identifier: Apache-2.0
// How processes that know only an address find one another: rank 0 gives the others some bytes.
#pragma once

#include <maskring/comm/detail/socket.hpp>
#include <maskring/core/errors.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

namespace maskring::comm {

/// Ranks did not find one another in time, or what they know contradicts.
class rendezvous_failed : public std::runtime_error {
public:
  explicit rendezvous_failed(const std::string& message)
      : std::runtime_error{"maskring: rendezvous: " + message} {}
};

/// Where rank 0 can be reached. It takes the first free one of `ports` ports from `port` on; the
/// others find out which.
struct meeting_point {
  std::string address;
  int port = 0;
  int ports = 8;
};

namespace detail {

inline constexpr std::uint64_t greeting = 0x6d61736b72696e67; // "maskring"

struct hello {
  std::uint64_t magic;
  std::uint32_t rank, size;
};

/// What rank 0 sends to everybody once all have come: an error of so many bytes, or (0) the data.
struct verdict_header {
  std::uint64_t error_bytes;
};

template <class T>
std::span<std::byte> bytes_of(T& value) {
  return std::as_writable_bytes(std::span{&value, 1});
}

inline std::string place(const meeting_point& where) {
  return where.address + ":" + std::to_string(where.port) +
         (where.ports > 1 ? "-" + std::to_string(where.port + where.ports - 1) : std::string{});
}

inline std::string seconds(std::chrono::milliseconds limit) {
  return std::to_string(limit.count() / 1000) + "." + std::to_string(limit.count() % 1000 / 100) +
         " s";
}

/// How long a stranger at a port may be silent before it counts as one.
inline constexpr std::chrono::milliseconds patience{2000};

inline deadline soon(deadline until) {
  return std::min(until, std::chrono::steady_clock::now() + patience);
}

class host_of_ranks {
public:
  host_of_ranks(const meeting_point& where, int size) : size_{size}, guests_(size) {
    for (int i = 0; i < where.ports && !listener_; ++i) {
      listener_ = listen_at(where.address, where.port + i);
    }
    if (!listener_) throw rendezvous_failed{"no free port at " + place(where)};
  }

  void serve(std::span<const std::byte> data, std::chrono::milliseconds limit) {
    const deadline until = std::chrono::steady_clock::now() + limit;
    std::string error;
    for (int arrived = 1; arrived < size_ && error.empty();) {
      if (!wait_for(listener_, POLLIN, until)) {
        error = "not all ranks came within " + seconds(limit) + ": missing" + missing();
        break;
      }
      socket_handle guest{
          ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
      hello who{};
      if (!guest || !send_all(guest, std::as_bytes(std::span{&greeting, 1}), soon(until)) ||
          !receive_all(guest, bytes_of(who), soon(until)) || who.magic != greeting) {
        continue; // not one of ours
      }
      const std::string name = "a process calls itself rank " + std::to_string(who.rank) + " of " +
                               std::to_string(who.size);
      if (who.size != static_cast<std::uint32_t>(size_)) {
        error = name + ", rank 0 expects " + std::to_string(size_) + " ranks";
      } else if (who.rank >= who.size) {
        error = name;
      } else if (who.rank == 0 || guests_[who.rank]) {
        error = name + ", and another one does too";
      }
      if (error.empty()) {
        guests_[who.rank] = std::move(guest);
        ++arrived;
      } else {
        reply(guest, error, data, until);
      }
    }
    for (const socket_handle& guest : guests_) {
      if (guest) reply(guest, error, data, std::chrono::steady_clock::now() + patience);
    }
    if (!error.empty()) throw rendezvous_failed{error};
  }

private:
  std::string missing() const {
    std::string out;
    int more = 0;
    for (std::size_t rank = 1; rank < guests_.size(); ++rank) {
      if (guests_[rank]) continue;
      if (++more <= 8) out += " " + std::to_string(rank);
    }
    return more <= 8 ? out : out + " and " + std::to_string(more - 8) + " more";
  }

  static void reply(const socket_handle& guest, const std::string& error,
                    std::span<const std::byte> data, deadline until) {
    verdict_header header{error.size()};
    send_all(guest, bytes_of(header), until);
    send_all(guest, error.empty() ? data : std::as_bytes(std::span{error}), until);
  }

  int size_;
  socket_handle listener_;
  std::vector<socket_handle> guests_;
};

inline void join(const meeting_point& where, int rank, int size, std::span<std::byte> data,
                 std::chrono::milliseconds limit) {
  const deadline until = std::chrono::steady_clock::now() + limit;
  while (std::chrono::steady_clock::now() < until) {
    for (int i = 0; i < where.ports; ++i) {
      const socket_handle host = connect_to(where.address, where.port + i, soon(until));
      std::uint64_t answer = 0;
      if (!host || !receive_all(host, bytes_of(answer), soon(until)) || answer != greeting)
        continue;
      hello me{greeting, static_cast<std::uint32_t>(rank), static_cast<std::uint32_t>(size)};
      verdict_header verdict{};
      // Rank 0, which may have begun later, is to say who is missing when its own time is up.
      const deadline answered = std::chrono::steady_clock::now() + limit + patience;
      if (!send_all(host, bytes_of(me), answered) ||
          !receive_all(host, bytes_of(verdict), answered)) {
        throw rendezvous_failed{"rank 0 has gone away"};
      }
      if (verdict.error_bytes == 0) {
        if (receive_all(host, data, answered)) return;
        throw rendezvous_failed{"rank 0 has gone away"};
      }
      std::string error(std::min<std::uint64_t>(verdict.error_bytes, 4096), ' ');
      receive_all(host, std::as_writable_bytes(std::span{error}), answered);
      throw rendezvous_failed{error};
    }
    std::this_thread::sleep_for(std::chrono::milliseconds{50});
  }
  throw rendezvous_failed{"rank " + std::to_string(rank) + " had no word from rank 0 at " +
                          place(where) + " within " + seconds(limit)};
}

} // namespace detail

/// Copies `data` from rank 0 to all others, once all `size` have come, over TCP at a place that all
/// know. Rank 0 listens on all networks of its machine, or on the loopback if `where` names that.
/// The limit is how long rank 0 waits for the others, and they for rank 0 to be there.
/// @throws rendezvous_failed on all ranks that have come if the others did not come within the
///         limit (naming some), or if two say that they are the same rank or sizes differ.
inline void broadcast_from_root(const meeting_point& where, int rank, int size,
                                std::span<std::byte> data, std::chrono::milliseconds limit) {
  maskring::detail::require(rank >= 0 && rank < size, "rendezvous: rank is ", rank,
                            ", expected 0 to ", size - 1);
  maskring::detail::require(where.port > 0 && where.ports > 0 && where.port + where.ports <= 65536,
                            "rendezvous: ports ", where.port, " to ", where.port + where.ports - 1,
                            ", expected 1 to 65535");
  if (size == 1) return;
  if (rank == 0) {
    detail::host_of_ranks{where, size}.serve(data, limit);
  } else {
    detail::join(where, rank, size, data, limit);
  }
}

} // namespace maskring::comm
