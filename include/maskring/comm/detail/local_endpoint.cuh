// SPDX-License-Identifier: Apache-2.0
// One rank's part in the exchange of messages among ranks of one process.
#pragma once

#include <maskring/comm/detail/local_group.cuh>

namespace maskring::comm::detail {

/// Transfers whose peers are ranks of the whole group.
struct local_transfers {
  std::vector<int> sends;         ///< who receives
  std::vector<transfer> receives; ///< what has not been queued yet
};

/// A sender posts where its message lies and an event after which it is complete; the receiver
/// queues the copy and an event after which the sender's memory is its own again.
class local_endpoint {
public:
  local_endpoint(local_group& group, int self) : group_{&group}, self_{self} {}

  int self() const { return self_; }
  cudaStream_t queue() const { return group_->at(self_).stream.get(); }

  /// Posts what is sent, and queues what has been posted of what is received.
  local_transfers start(cudaStream_t stream, std::span<const transfer> transfers) const {
    local_transfers out;
    local_group::turn turn{*group_};
    group_->require_alive();
    local_group::member& me = group_->at(self_);
    record(me.ready, stream);
    detail::wait(me.stream.get(), me.ready);
    for (const transfer& t : transfers) {
      if (t.direction == transfer::way::receive) {
        out.receives.push_back(t);
        continue;
      }
      local_group::pair& pair = group_->between(self_, t.peer);
      pair.posted.push_back({t.data, t.bytes});
      pair.sent.bytes += t.bytes;
      pair.sent.messages += 1;
      out.sends.push_back(t.peer);
    }
    fetch(out.receives);
    group_->changed_.notify_all();
    return out;
  }

  /// Meets the other ranks' threads until all is queued, and lets `stream` wait for it.
  void finish(cudaStream_t stream, local_transfers& moving) const {
    local_group::turn turn{*group_};
    local_group::member& me = group_->at(self_);
    std::vector<transfer>& receives = moving.receives;
    const auto posted_by = [&](const transfer& t) { return next_of(t.peer) != nullptr; };
    while (fetch(receives), !receives.empty()) {
      group_->changed_.notify_all();
      meet(
          turn, [&] { return std::any_of(receives.begin(), receives.end(), posted_by); },
          [&] {
            const auto gone =
                std::find_if(receives.begin(), receives.end(),
                             [&](const transfer& t) { return group_->at(t.peer).finished; });
            return gone == receives.end() ? -1 : gone->peer;
          });
    }
    group_->changed_.notify_all();
    record(me.done, me.stream.get());
    detail::wait(stream, me.done);
    for (const int peer : moving.sends) {
      auto& posted = group_->between(self_, peer).posted;
      meet(
          turn,
          [&] {
            return std::all_of(posted.begin(), posted.end(), [](auto& m) { return m.taken; });
          },
          [&] { return group_->at(peer).finished ? peer : -1; });
      detail::wait(stream, group_->at(peer).taken[static_cast<std::size_t>(self_)]);
      posted.clear();
    }
  }

  std::vector<std::byte> share(std::span<const int> members,
                               std::span<const std::byte> mine) const {
    local_group::turn turn{*group_};
    for (const int peer : members) {
      group_->between(self_, peer).shared.emplace_back(mine.begin(), mine.end());
    }
    group_->changed_.notify_all();
    std::vector<std::byte> all;
    for (const int peer : members) {
      auto& box = group_->between(peer, self_).shared;
      meet(
          turn, [&] { return !box.empty(); },
          [&] { return group_->at(peer).finished ? peer : -1; });
      if (box.front().size() != mine.size()) {
        throw mismatch{"maskring: comm: rank " + std::to_string(self_) + " shares " +
                       std::to_string(mine.size()) + " bytes and rank " + std::to_string(peer) +
                       " " + std::to_string(box.front().size())};
      }
      all.insert(all.end(), box.front().begin(), box.front().end());
      box.pop_front();
    }
    return all;
  }

private:
  /// The oldest message of a sender that has not been fetched, or null.
  local_group::message* next_of(int peer) const {
    for (local_group::message& m : group_->between(peer, self_).posted) {
      if (!m.taken) return &m;
    }
    return nullptr;
  }

  /// Queues the copies of all messages that have been posted; the others stay in the list.
  void fetch(std::vector<transfer>& receives) const {
    local_group::member& me = group_->at(self_);
    const cudaStream_t stream = me.stream.get();
    std::erase_if(receives, [&](const transfer& t) {
      local_group::message* message = next_of(t.peer);
      if (message == nullptr) return false;
      if (message->bytes != t.bytes) {
        throw mismatch{"maskring: comm: rank " + std::to_string(self_) + " expects " +
                       std::to_string(t.bytes) + " bytes from rank " + std::to_string(t.peer) +
                       ", which sent " + std::to_string(message->bytes)};
      }
      const local_group::member& peer = group_->at(t.peer);
      detail::wait(stream, peer.ready);
      if (t.bytes > 0) {
        // Between devices too: unlike a copy between peers, a graph can hold it.
        require_cuda(cudaMemcpyAsync(t.data, message->data, t.bytes, cudaMemcpyDefault, stream),
                     "copy between ranks");
      }
      record(me.taken[static_cast<std::size_t>(t.peer)], stream);
      message->taken = true;
      return true;
    });
  }

  /// Waits on the host until other ranks have brought about `ready`. `gone` names a rank that never
  /// will, or -1.
  template <class Ready, class Gone>
  void meet(local_group::turn& turn, Ready ready, Gone gone) const {
    for (;;) {
      group_->require_alive();
      if (ready()) return;
      if (const int peer = gone(); peer >= 0) {
        throw mismatch{"maskring: comm: rank " + std::to_string(self_) + " waits for rank " +
                       std::to_string(peer) + ", which has ended"};
      }
      group_->changed_.wait(turn.lock());
    }
  }

  local_group* group_;
  int self_;
};

} // namespace maskring::comm::detail
