// SPDX-License-Identifier: Apache-2.0
// The work of several local ranks as one CUDA graph.
#pragma once

#include <maskring/comm/local.cuh>

namespace maskring::comm {

/// A graph of all ranks' work, on rank 0; empty on the others.
class captured_graph {
public:
  captured_graph() = default;
  explicit captured_graph(cudaGraph_t graph) {
    cudaGraphExec_t out = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&out, graph, 0);
    cudaGraphDestroy(graph);
    detail::require_cuda(status, "cudaGraphInstantiate");
    instance_ = detail::owned<cudaGraphExec_t, &cudaGraphExecDestroy>{out};
  }
  explicit operator bool() const { return static_cast<bool>(instance_); }
  cudaGraphExec_t get() const { return instance_.get(); }

  /// Queues the work of all ranks. @throws std::logic_error on ranks other than 0; cuda::error.
  void launch(cudaStream_t stream) const {
    if (!instance_) throw std::logic_error{"maskring: captured_graph: launched where it is empty"};
    detail::require_cuda(cudaGraphLaunch(instance_.get(), stream), "cudaGraphLaunch");
  }

private:
  detail::owned<cudaGraphExec_t, &cudaGraphExecDestroy> instance_;
};

namespace detail {

/// Ends a capture that an exception cut short.
class capture_scope {
public:
  explicit capture_scope(cudaStream_t stream) : stream_{stream} {
    require_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed),
                 "cudaStreamBeginCapture");
  }
  capture_scope(const capture_scope&) = delete;
  ~capture_scope() {
    if (!stream_) return;
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(stream_, &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
  }
  cudaGraph_t end() {
    cudaGraph_t graph = nullptr;
    require_cuda(cudaStreamEndCapture(std::exchange(stream_, nullptr), &graph),
                 "cudaStreamEndCapture");
    return graph;
  }

private:
  cudaStream_t stream_;
};

/// Meets all ranks; what each one gives, by rank.
inline std::vector<cudaEvent_t> share_event(local& comm, cudaEvent_t mine) {
  const std::vector<std::byte> bytes = comm.share(std::as_bytes(std::span{&mine, 1}));
  std::vector<cudaEvent_t> out(static_cast<std::size_t>(comm.size()));
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

} // namespace detail

/// Records what `body()` puts into the streams of all ranks, each rank its own, as one graph. All
/// ranks call it, outside of which nothing is executed: run `body` once before, so that memory is
/// allocated and block maps are made.
///
/// ```cpp
/// ring.forward(exec, in, out);
/// auto graph = comm::capture(c, stream, [&] { ring.forward(exec, in, out); });
/// if (c.rank() == 0) graph.launch(stream);  // all ranks' work
/// ```
/// @throws std::logic_error if the ranks do not take turns (local_options::turns); cuda::error.
template <class Body>
captured_graph capture(local& comm, cudaStream_t stream, Body&& body) {
  if (!comm.takes_turns()) {
    throw std::logic_error{"maskring: capture: expected ranks that take turns "
                           "(local_options::turns)"};
  }
  const detail::event fork = detail::make_event(), join = detail::make_event();
  std::optional<detail::capture_scope> scope;
  if (comm.rank() == 0) {
    scope.emplace(stream);
    detail::record(fork, stream);
  }
  const cudaEvent_t first = detail::share_event(comm, fork.get())[0];
  if (comm.rank() != 0) {
    detail::require_cuda(cudaStreamWaitEvent(stream, first, 0), "cudaStreamWaitEvent");
  }
  body();
  detail::record(join, stream);
  const std::vector<cudaEvent_t> ends = detail::share_event(comm, join.get());
  captured_graph out;
  if (comm.rank() == 0) {
    for (int rank = 1; rank < comm.size(); ++rank) {
      detail::require_cuda(cudaStreamWaitEvent(stream, ends[static_cast<std::size_t>(rank)], 0),
                           "cudaStreamWaitEvent");
    }
    out = captured_graph{scope->end()};
  }
  detail::share_event(comm, nullptr); // events live until rank 0 is done with them
  return out;
}

} // namespace maskring::comm
