// SPDX-License-Identifier: Apache-2.0
// NCCL behind the communicator concepts.
#pragma once

#include <maskring/comm/concepts.hpp>
#include <maskring/comm/nccl/family.cuh>
#include <maskring/core/errors.hpp>

#include <limits>
#include <memory>

namespace maskring::comm {

struct nccl_options {
  /// How long an operation may take, from the end of the work before it, until the communicator
  /// gives up. Ranks that compute for longer than this between two messages need more.
  std::chrono::milliseconds time_limit = std::chrono::minutes{5};
  /// Memory from allocate() is registered with NCCL, so that transports inside a machine read and
  /// write it directly. Only where all that any rank sends and receives is such memory: NCCL leaves
  /// undefined what happens (it hangs) when one side of a message is registered and the other is
  /// not. Drivers send the caller's tensors, which must then come from allocate() too.
  bool register_buffers = false;
};

enum class ownership {
  borrowed, ///< the caller destroys the communicator, unless a failure has ended it
  taken     ///< destroyed with its last handle
};

/// A rank of an NCCL communicator, on the device that is current when it is made; for use by one
/// thread. Models every concept of comm/concepts.hpp with cudaStream_t. (reduce_scatter adds in the
/// order that NCCL chooses.)
///
/// Messages go on a stream of the communicator's own. A peer that is dead or stuck ends in
/// timed_out or nccl_error on every surviving rank, thrown by the next call on the communicator: by
/// synchronize(stream) at the latest, and cudaStreamSynchronize returns too. It and all
/// communicators split off it are then of no more use.
class nccl {
  struct state;

public:
  /// @param blocking whether `existing` was made with config.blocking = 1, NCCL's default.
  nccl(ncclComm_t existing, ownership own, const nccl_options& opt = {}, bool blocking = true) {
    int rank = 0, size = 0;
    const auto ask = [&](ncclResult_t status, const char* call) {
      if (status != ncclSuccess) throw nccl_error{status, call, existing};
    };
    ask(ncclCommUserRank(existing, &rank), "ncclCommUserRank");
    ask(ncclCommCount(existing, &size), "ncclCommCount");
    auto family = std::make_shared<detail::nccl_family>(rank, size, opt.time_limit);
    state_ = std::make_shared<state>(std::move(family), existing, rank, size, own, blocking, opt);
  }

  /// Rank `rank` of `size`; all call it with the same identifier (ncclGetUniqueId on one of them).
  nccl(const ncclUniqueId& id, int rank, int size, const nccl_options& opt = {}) {
    auto family = std::make_shared<detail::nccl_family>(rank, size, opt.time_limit);
    ncclConfig_t config = non_blocking();
    ncclComm_t made = nullptr;
    const ncclResult_t status = ncclCommInitRankConfig(&made, size, id, rank, &config);
    if (status != ncclSuccess && status != ncclInProgress) {
      throw nccl_error{status, "ncclCommInitRankConfig"};
    }
    family->add(made);
    family->settle(made, "ncclCommInitRankConfig", status);
    family->remove(made); // state adds it again
    state_ =
        std::make_shared<state>(std::move(family), made, rank, size, ownership::taken, false, opt);
  }

  /// One rank for each of the devices, in this process: rank i is for a thread of its own whose
  /// current device is devices[i]. As ncclCommInitAll, but with the time limit.
  static std::vector<nccl> all(std::span<const int> devices, const nccl_options& opt = {}) {
    ncclUniqueId id;
    if (const ncclResult_t status = ncclGetUniqueId(&id); status != ncclSuccess) {
      throw nccl_error{status, "ncclGetUniqueId"};
    }
    std::vector<std::optional<nccl>> made(devices.size());
    std::vector<std::exception_ptr> errors(devices.size());
    std::vector<std::thread> running;
    for (std::size_t i = 0; i < devices.size(); ++i) {
      running.emplace_back([&, i] {
        try {
          detail::require_cuda(cudaSetDevice(devices[i]), "cudaSetDevice");
          made[i].emplace(id, static_cast<int>(i), static_cast<int>(devices.size()), opt);
        } catch (...) {
          errors[i] = std::current_exception();
        }
      });
    }
    for (std::thread& t : running) t.join();
    std::vector<nccl> out;
    for (std::size_t i = 0; i < devices.size(); ++i) {
      if (errors[i]) std::rethrow_exception(errors[i]);
      out.push_back(std::move(*made[i]));
    }
    return out;
  }

  int rank() const { return state_->rank; }
  int size() const { return state_->size; }
  ncclComm_t handle() const { return state_->comm; }

  /// Memory for messages, on the communicator's device; it must go before the communicator does.
  class buffer {
  public:
    buffer(std::shared_ptr<state> owner, std::size_t bytes) : owner_{std::move(owner)} {
      bytes = std::max<std::size_t>(bytes, 1);
      const detail::device_scope scope{owner_->family->device()};
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 19, 0)
      if (owner_->opt.register_buffers && ncclMemAlloc(&data_, bytes) == ncclSuccess) {
        from_nccl_ = true;
        const auto work = [&] {
          return ncclCommRegister(owner_->comm, data_, bytes, &registered_);
        };
        owner_->family->call(owner_->comm, "ncclCommRegister", owner_->blocking, work);
        return;
      }
#endif
      detail::require_cuda(cudaMalloc(&data_, bytes), "cudaMalloc");
    }
    buffer(buffer&& other) noexcept
        : owner_{std::move(other.owner_)},
          data_{std::exchange(other.data_, nullptr)},
          registered_{std::exchange(other.registered_, nullptr)},
          from_nccl_{other.from_nccl_} {}
    buffer& operator=(buffer&& other) noexcept {
      std::swap(owner_, other.owner_);
      std::swap(data_, other.data_);
      std::swap(registered_, other.registered_);
      std::swap(from_nccl_, other.from_nccl_);
      return *this;
    }
    ~buffer() {
      if (!data_) return;
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 19, 0)
      if (from_nccl_) {
        cudaDeviceSynchronize(); // as cudaFree does: work may still use the memory
        if (registered_ && owner_->family->alive()) ncclCommDeregister(owner_->comm, registered_);
        ncclMemFree(data_);
        return;
      }
#endif
      cudaFree(data_);
    }
    void* data() const { return data_; }

  private:
    std::shared_ptr<state> owner_;
    void* data_ = nullptr;
    void* registered_ = nullptr;
    bool from_nccl_ = false;
  };
  buffer allocate(std::size_t bytes) { return {state_, bytes}; }

  class pending {
  public:
    /// @throws timed_out or nccl_error if the communicator has failed meanwhile.
    void wait(cudaStream_t stream) {
      state_->family->require_alive();
      detail::require_cuda(cudaStreamWaitEvent(stream, state_->done.get(), 0),
                           "cudaStreamWaitEvent");
    }

    /// Where NCCL's work goes.
    cudaStream_t queue() const { return state_->stream.get(); }

  private:
    friend class nccl;
    explicit pending(std::shared_ptr<state> s) : state_{std::move(s)} {}
    std::shared_ptr<state> state_;
  };

  /// @throws std::invalid_argument for a peer that does not exist; nccl_error; timed_out.
  pending start(cudaStream_t stream, std::span<const transfer> group) {
    for (const transfer& t : group) {
      maskring::detail::require(t.peer >= 0 && t.peer < size(), "comm: peer is ", t.peer,
                                ", expected 0 to ", size() - 1);
    }
    return enqueue(stream, describe(group), [&] {
      ncclResult_t status = ncclGroupStart();
      for (const transfer& t : group) {
        if (t.bytes == 0 || status != ncclSuccess) continue;
        status = t.direction == transfer::way::send
                     ? ncclSend(t.data, t.bytes, ncclUint8, t.peer, state_->comm, queue())
                     : ncclRecv(t.data, t.bytes, ncclUint8, t.peer, state_->comm, queue());
        if (status == ncclInProgress) status = ncclSuccess;
      }
      const ncclResult_t ended = ncclGroupEnd();
      return status != ncclSuccess ? status : ended;
    });
  }

  void all_gather(cudaStream_t stream, const void* mine, void* all, std::size_t bytes) {
    if (bytes == 0) return;
    const auto work = [&] {
      return ncclAllGather(mine, all, bytes, ncclUint8, state_->comm, queue());
    };
    enqueue(stream, "all-gather of " + std::to_string(bytes) + " bytes", work).wait(stream);
  }

  void all_to_all(cudaStream_t stream, const void* from, void* to, std::size_t bytes) {
    std::vector<transfer> group;
    for (int peer = 0; peer < size(); ++peer) {
      const auto at = static_cast<std::size_t>(peer) * bytes;
      group.push_back(
          send(peer, static_cast<const std::byte*>(from) + at, static_cast<index_t>(bytes)));
      group.push_back(receive(peer, static_cast<std::byte*>(to) + at, static_cast<index_t>(bytes)));
    }
    start(stream, group).wait(stream);
  }

  void reduce_scatter(cudaStream_t stream, const float* from, float* to, index_t count) {
    if (count == 0) return;
    const auto work = [&] {
      return ncclReduceScatter(from, to, static_cast<std::size_t>(count), ncclFloat32, ncclSum,
                               state_->comm, queue());
    };
    enqueue(stream, "reduce-scatter of " + std::to_string(count) + " floats", work).wait(stream);
  }

  /// Through device memory; waits for it. For set-up.
  std::vector<std::byte> share(std::span<const std::byte> mine) {
    std::vector<std::byte> all(mine.size() * static_cast<std::size_t>(size()));
    if (all.empty()) return all;
    const detail::device_scope scope{state_->family->device()};
    const detail::device_memory memory{all.size()};
    std::byte* place = static_cast<std::byte*>(memory.data());
    std::byte* own = place + static_cast<std::size_t>(rank()) * mine.size();
    detail::require_cuda(
        cudaMemcpyAsync(own, mine.data(), mine.size(), cudaMemcpyHostToDevice, queue()),
        "cudaMemcpyAsync");
    // In place: what a rank gives lies where it will be.
    const auto work = [&] {
      return ncclAllGather(own, place, mine.size(), ncclUint8, state_->comm, queue());
    };
    enqueue(queue(), "exchange of " + std::to_string(mine.size()) + " bytes", work);
    state_->family->synchronize(queue());
    detail::require_cuda(
        cudaMemcpyAsync(all.data(), place, all.size(), cudaMemcpyDeviceToHost, queue()),
        "cudaMemcpyAsync");
    state_->family->synchronize(queue());
    return all;
  }

  /// The ranks that give the same color (0 or more), ordered by key and then by rank; it fails
  /// together with this one. A rank that gives a negative color takes part and gets an empty
  /// handle.
  nccl split(int color, int key) {
    state& s = *state_;
    ncclConfig_t config = non_blocking();
    ncclComm_t made = nullptr; // until this communicator is ready again
    const std::string operation = "ncclCommSplit";
    s.family->call(s.comm, operation, s.blocking, [&] {
      return ncclCommSplit(s.comm, color < 0 ? NCCL_SPLIT_NOCOLOR : color, key, &made, &config);
    });
    if (color < 0) return {};
    s.family->add(made);
    s.family->settle(made, operation, ncclSuccess);
    int part_rank = 0, part_size = 0;
    ncclCommUserRank(made, &part_rank);
    ncclCommCount(made, &part_size);
    s.family->remove(made); // state adds it again
    nccl out;
    out.state_ = std::make_shared<state>(s.family, made, part_rank, part_size, ownership::taken,
                                         false, s.opt);
    out.state_->parent = state_;
    return out;
  }
  explicit operator bool() const { return state_ != nullptr; }

  /// Waits on the host for what `stream` holds, as cudaStreamSynchronize.
  /// @throws timed_out or nccl_error if a peer has failed.
  void synchronize(cudaStream_t stream) const { state_->family->synchronize(stream); }

  /// Throws what has ended this communicator, if something has.
  void require_alive() const { state_->family->require_alive(); }

private:
  struct state {
    state(std::shared_ptr<detail::nccl_family> with, ncclComm_t handle, int r, int n,
          ownership owned, bool is_blocking, const nccl_options& options)
        : family{std::move(with)},
          comm{handle},
          rank{r},
          size{n},
          own{owned},
          blocking{is_blocking},
          opt{options} {
      const detail::device_scope scope{family->device()};
      stream = detail::make_stream();
      ready = detail::make_event();
      done = detail::make_event();
      family->add(comm);
    }
    state(const state&) = delete;
    ~state() {
      if (!family->remove(comm) || own == ownership::borrowed) return;
      if (blocking) {
        ncclCommDestroy(comm);
        return;
      }
      // A peer that never finalises must not hold this rank up.
      try {
        family->settle(comm, "ncclCommFinalize", ncclCommFinalize(comm));
        ncclCommDestroy(comm);
      } catch (const std::exception&) {
        ncclCommAbort(comm);
      }
    }

    std::shared_ptr<detail::nccl_family> family;
    std::shared_ptr<state> parent; // destroyed later
    ncclComm_t comm;
    int rank, size;
    ownership own;
    bool blocking;
    nccl_options opt;
    detail::stream stream;
    detail::event ready, done;
  };

  nccl() = default;

  static ncclConfig_t non_blocking() {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    return config;
  }
  cudaStream_t queue() const { return state_->stream.get(); }

  /// Puts NCCL's work behind what `stream` holds, on the communicator's stream.
  template <class Work>
  pending enqueue(cudaStream_t stream, const std::string& operation, Work work) {
    state& s = *state_;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    detail::require_cuda(cudaStreamIsCapturing(stream, &capture), "cudaStreamIsCapturing");
    if (stream != queue()) {
      detail::record(s.ready, stream);
      detail::wait(queue(), s.ready);
    }
    if (capture == cudaStreamCaptureStatusNone) {
      s.family->call_watched(s.comm, operation, s.blocking, queue(), work);
    } else { // what a graph does later cannot be watched from here
      s.family->call(s.comm, operation, s.blocking, work);
    }
    detail::record(s.done, queue());
    return pending{state_};
  }

  std::string describe(std::span<const transfer> group) const {
    std::string out;
    for (const transfer& t : group) {
      if (out.size() > 200) return out + ", ...";
      out += out.empty() ? "" : ", ";
      out += t.direction == transfer::way::send ? "send to rank " : "receive from rank ";
      out += std::to_string(t.peer) + " (" + std::to_string(t.bytes) + " bytes)";
    }
    return out.empty() ? "empty group" : out;
  }

  std::shared_ptr<state> state_;
};

} // namespace maskring::comm
