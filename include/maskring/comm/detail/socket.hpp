// SPDX-License-Identifier: Apache-2.0
// TCP connections that give up at a deadline.
#pragma once

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>

namespace maskring::comm::detail {

using deadline = std::chrono::steady_clock::time_point;

/// Owns a file descriptor.
class socket_handle {
public:
  socket_handle() = default;
  explicit socket_handle(int fd) : fd_{fd} {}
  socket_handle(socket_handle&& other) noexcept : fd_{std::exchange(other.fd_, -1)} {}
  socket_handle& operator=(socket_handle&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~socket_handle() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

private:
  int fd_ = -1;
};

/// False if nothing happened before the deadline.
inline bool wait_for(const socket_handle& s, short events, deadline until) {
  for (;;) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    pollfd what{s.get(), events, 0};
    const int ready = ::poll(&what, 1, static_cast<int>(std::max<long long>(left.count(), 0)));
    if (ready > 0) return true;
    if (ready == 0 || errno != EINTR) return false;
  }
}

/// True when all bytes have gone; false at the deadline or when the other side has closed.
inline bool send_all(const socket_handle& s, std::span<const std::byte> data, deadline until) {
  while (!data.empty()) {
    if (!wait_for(s, POLLOUT, until)) return false;
    const ssize_t sent = ::send(s.get(), data.data(), data.size(), MSG_NOSIGNAL);
    if (sent < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (sent <= 0) return false;
    data = data.subspan(static_cast<std::size_t>(sent));
  }
  return true;
}

inline bool receive_all(const socket_handle& s, std::span<std::byte> data, deadline until) {
  while (!data.empty()) {
    if (!wait_for(s, POLLIN, until)) return false;
    const ssize_t got = ::recv(s.get(), data.data(), data.size(), 0);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got <= 0) return false;
    data = data.subspan(static_cast<std::size_t>(got));
  }
  return true;
}

struct address_list {
  struct release {
    void operator()(addrinfo* list) const { ::freeaddrinfo(list); }
  };
  std::unique_ptr<addrinfo, release> first;

  /// Empty if the host is unknown.
  address_list(const std::string& host, int port) {
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) == 0) {
      first.reset(found);
    }
  }
  bool loopback() const {
    if (!first) return false;
    if (first->ai_family == AF_INET) {
      const auto* in = reinterpret_cast<const sockaddr_in*>(first->ai_addr);
      return (ntohl(in->sin_addr.s_addr) >> 24) == 127;
    }
    const auto* in6 = reinterpret_cast<const sockaddr_in6*>(first->ai_addr);
    return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
  }
};

/// Accepts connections at a port, from this machine only where `host` is a name of its loopback.
/// Empty if the port is taken.
inline socket_handle listen_at(const std::string& host, int port) {
  const bool local = address_list{host, port}.loopback();
  for (const char* any : {local ? "::1" : "::", local ? "127.0.0.1" : "0.0.0.0"}) {
    // A name of IPv4's loopback is only reached over IPv4.
    if (local && std::string{any} == "::1" &&
        address_list{host, port}.first->ai_family == AF_INET) {
      continue;
    }
    const address_list here{any, port};
    if (!here.first) continue;
    socket_handle s{::socket(here.first->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    if (!s) continue;
    const int yes = 1, no = 0;
    ::setsockopt(s.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    if (here.first->ai_family == AF_INET6) {
      ::setsockopt(s.get(), IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no));
    }
    if (::bind(s.get(), here.first->ai_addr, here.first->ai_addrlen) != 0) {
      if (errno == EADDRINUSE || errno == EACCES) return {};
      continue;
    }
    if (::listen(s.get(), 1024) == 0) return s;
    if (errno == EADDRINUSE) return {};
  }
  return {};
}

/// Whether a connection leads back to its own socket: one to a port that nobody listens at does,
/// where the system happens to give it that port for its own end.
inline bool leads_to_itself(const socket_handle& s) {
  sockaddr_storage here{}, there{};
  socklen_t here_size = sizeof(here), there_size = sizeof(there);
  return ::getsockname(s.get(), reinterpret_cast<sockaddr*>(&here), &here_size) == 0 &&
         ::getpeername(s.get(), reinterpret_cast<sockaddr*>(&there), &there_size) == 0 &&
         here_size == there_size && std::memcmp(&here, &there, here_size) == 0;
}

/// Empty if nobody answers at any of the host's addresses before the deadline.
inline socket_handle connect_to(const std::string& host, int port, deadline until) {
  const address_list there{host, port};
  for (const addrinfo* a = there.first.get(); a; a = a->ai_next) {
    socket_handle s{::socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    if (!s) continue;
    if (::connect(s.get(), a->ai_addr, a->ai_addrlen) != 0) {
      if (errno != EINPROGRESS || !wait_for(s, POLLOUT, until)) continue;
      int status = 0;
      socklen_t size = sizeof(status);
      ::getsockopt(s.get(), SOL_SOCKET, SO_ERROR, &status, &size);
      if (status != 0) continue;
    }
    if (!leads_to_itself(s)) return s;
  }
  return {};
}

} // namespace maskring::comm::detail
