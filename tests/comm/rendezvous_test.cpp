// SPDX-License-Identifier: Apache-2.0
#include <maskring/comm/rendezvous.hpp>

#include <doctest/doctest.h>

#include <array>
#include <random>

namespace {

using namespace maskring::comm;
using namespace std::chrono_literals;

/// Ports below those that the system gives to outgoing connections.
meeting_point somewhere() {
  return {"127.0.0.1", 20000 + static_cast<int>(std::random_device{}() % 12000), 8};
}

/// What each of the given (rank, size) pairs got: the data, or the error.
std::vector<std::string> meet(const meeting_point& where, std::vector<std::pair<int, int>> ranks,
                              std::chrono::milliseconds limit,
                              std::chrono::milliseconds head_start = 0s) {
  const std::string data = "identifier";
  std::vector<std::string> out(ranks.size());
  std::vector<std::thread> running;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    running.emplace_back([&, i] {
      std::string mine = ranks[i].first == 0 ? data : std::string(data.size(), '?');
      try {
        if (ranks[i].first == 0) std::this_thread::sleep_for(head_start);
        broadcast_from_root(where, ranks[i].first, ranks[i].second,
                            std::as_writable_bytes(std::span{mine}), limit);
        out[i] = mine;
      } catch (const std::exception& error) {
        out[i] = error.what();
      }
    });
  }
  for (std::thread& t : running) t.join();
  return out;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

} // namespace

TEST_CASE("rendezvous: everybody gets what rank 0 gives") {
  for (int size : {1, 2, 9}) {
    std::vector<std::pair<int, int>> ranks;
    for (int rank = size - 1; rank >= 0; --rank) ranks.emplace_back(rank, size);
    for (const std::string& got : meet(somewhere(), ranks, 20s)) CHECK(got == "identifier");
  }
}

TEST_CASE("rendezvous: a port that somebody else holds is passed by") {
  const meeting_point where = somewhere();
  // One that answers nothing, and one that hangs up.
  const auto silent = detail::listen_at("127.0.0.1", where.port);
  REQUIRE(silent);
  for (const std::string& got : meet(where, {{0, 3}, {2, 3}, {1, 3}}, 30s))
    CHECK(got == "identifier");
}

TEST_CASE("rendezvous: who does not come is named on all ranks that came") {
  // Also on those that began before rank 0: what they can say themselves when their time is up is
  // only that nobody told them anything.
  for (const std::string& got : meet(somewhere(), {{0, 5}, {1, 5}, {3, 5}}, 3s, 300ms)) {
    CHECK(contains(got, "not all ranks came within 3.0 s: missing 2 4"));
  }
  const meeting_point where = somewhere();
  const auto got = meet(where, {{1, 2}}, 300ms);
  CHECK(contains(got[0],
                 "rank 1 had no word from rank 0 at 127.0.0.1:" + std::to_string(where.port)));
  CHECK(contains(got[0], "within 0.3 s"));
}

TEST_CASE("rendezvous: processes that contradict one another") {
  for (const std::string& got : meet(somewhere(), {{0, 4}, {1, 4}, {1, 4}}, 10s)) {
    CHECK(contains(got, "a process calls itself rank 1 of 4, and another one does too"));
  }
  const auto sizes = meet(somewhere(), {{0, 3}, {1, 2}}, 10s);
  for (const std::string& got : sizes) {
    CHECK(contains(got, "a process calls itself rank 1 of 2, rank 0 expects 3 ranks"));
  }
  const auto zero = meet(somewhere(), {{0, 2}, {2, 3}}, 10s);
  for (const std::string& got : zero) CHECK(contains(got, "rank 2 of 3"));
}

TEST_CASE("rendezvous: a connection that leads back to its own socket is none") {
  const detail::address_list any{"127.0.0.1", 0};
  const detail::socket_handle s{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  REQUIRE(::bind(s.get(), any.first->ai_addr, any.first->ai_addrlen) == 0);
  sockaddr_in here{};
  socklen_t size = sizeof(here);
  REQUIRE(::getsockname(s.get(), reinterpret_cast<sockaddr*>(&here), &size) == 0);
  REQUIRE(::connect(s.get(), reinterpret_cast<const sockaddr*>(&here), size) == 0);
  CHECK(detail::leads_to_itself(s));

  const meeting_point where = somewhere();
  const auto listener = detail::listen_at(where.address, where.port);
  REQUIRE(listener);
  const auto soon = std::chrono::steady_clock::now() + 10s;
  const auto other = detail::connect_to(where.address, where.port, soon);
  REQUIRE(other);
  CHECK(!detail::leads_to_itself(other));
}

TEST_CASE("rendezvous: bad places") {
  std::array<std::byte, 1> data{};
  CHECK_THROWS_AS(broadcast_from_root({"localhost", 0, 8}, 0, 2, data, 1s), std::invalid_argument);
  CHECK_THROWS_AS(broadcast_from_root({"localhost", 65530, 8}, 0, 2, data, 1s),
                  std::invalid_argument);
  CHECK_THROWS_AS(broadcast_from_root({"localhost", 4000, 8}, 2, 2, data, 1s),
                  std::invalid_argument);
}
