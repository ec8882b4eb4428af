// SPDX-License-Identifier: Apache-2.0
// Context-parallel attention with a process a GPU, each checked against attention over everything:
//
//   torchrun --nproc-per-node 8 --no-python flex_attention_cp_nccl
//   mpirun -n 8 flex_attention_cp_nccl          srun -n 8 flex_attention_cp_nccl
//
// On several machines mpirun needs MASTER_ADDR and MASTER_PORT. Exit status 1 on any mismatch.
#include <maskring/comm/nccl.cuh>
#include <maskring/cp/all_gather.hpp>
#include <maskring/cp/cuda.cuh>
#include <maskring/cp/hybrid.hpp>
#include <maskring/cp/ring.hpp>
#include <maskring/cp/ulysses.hpp>
#include <maskring/mask/basic.hpp>

#include <cstdio>
#include <random>

namespace {

using namespace maskring;

constexpr index_t batch = 1, heads = 8, dim = 64;

/// A float tensor [batch, heads, tokens, dim] in device memory.
class tensor {
public:
  explicit tensor(index_t tokens)
      : tokens_{tokens}, memory_{static_cast<std::size_t>(count()) * sizeof(float)} {}
  tensor(index_t tokens, const std::vector<float>& values) : tensor{tokens} {
    comm::detail::require_cuda(cudaMemcpy(memory_.data(), values.data(), values.size() * sizeof(float),
                                          cudaMemcpyHostToDevice),
                               "cudaMemcpy");
  }
  view<float, 4> span() const {
    return {static_cast<float*>(memory_.data()), {batch, heads, tokens_, dim}};
  }
  view<const float, 4> read() const { return span(); }
  std::vector<float> values() const {
    std::vector<float> out(static_cast<std::size_t>(count()));
    comm::detail::require_cuda(cudaMemcpy(out.data(), memory_.data(), out.size() * sizeof(float),
                                          cudaMemcpyDeviceToHost),
                               "cudaMemcpy");
    return out;
  }

private:
  index_t count() const { return batch * heads * tokens_ * dim; }
  index_t tokens_;
  comm::detail::device_memory memory_;
};

/// The tokens of a rank, of a whole host tensor.
template <class Layout>
std::vector<float> shard_of(const std::vector<float>& whole, const Layout& layout, int rank) {
  const index_t count = layout.size(rank);
  std::vector<float> out;
  for (index_t layer = 0; layer < batch * heads; ++layer) {
    for (index_t i = 0; i < count; ++i) {
      const index_t at = layer * layout.sequence() + layout.map(rank)(static_cast<int>(i));
      out.insert(out.end(), whole.begin() + at * dim, whole.begin() + (at + 1) * dim);
    }
  }
  return out;
}

double max_error(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double error = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    worst = error <= worst ? worst : error; // a NaN counts
  }
  return worst;
}

/// The inputs, and what one GPU makes of all of them.
struct whole_problem {
  std::vector<float> q, k, v, dout, out, dq, dk, dv;
};

template <class Mask>
whole_problem solve(index_t tokens, const Mask& mask, cudaStream_t stream) {
  whole_problem w;
  std::mt19937 random{0};
  std::normal_distribution<float> normal;
  for (std::vector<float>* x : {&w.q, &w.k, &w.v, &w.dout}) {
    for (index_t i = 0; i < batch * heads * tokens * dim; ++i) x->push_back(normal(random));
  }
  const tensor q{tokens, w.q}, k{tokens, w.k}, v{tokens, w.v}, dout{tokens, w.dout};
  const tensor out{tokens}, dq{tokens}, dk{tokens}, dv{tokens};
  const comm::detail::device_memory rows{static_cast<std::size_t>(batch * heads * tokens) * sizeof(float)};
  const view<float, 3> lse{static_cast<float*>(rows.data()), {batch, heads, tokens}};
  maskring::cuda::workspace scratch;
  const auto exec = maskring::cuda::on(stream, scratch, maskring::cuda::head_dims<dim>);
  forward(exec, inputs{q.read(), k.read(), v.read()}, results{out.span(), lse}, mask);
  backward(exec, saved{q.read(), k.read(), v.read(), out.read(), lse}, upstream{dout.read()},
           gradients{dq.span(), dk.span(), dv.span()}, mask);
  comm::detail::require_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  w.out = out.values();
  w.dq = dq.values();
  w.dk = dk.values();
  w.dv = dv.values();
  return w;
}

/// Whether a driver gives this rank its shard of the whole results.
template <class Driver, class Layout>
bool check(const char* name, comm::nccl& c, Driver&& driver, const Layout& layout,
           const whole_problem& w, cudaStream_t stream) {
  const int rank = c.rank();
  const index_t tokens = layout.size(rank);
  const tensor q{tokens, shard_of(w.q, layout, rank)}, k{tokens, shard_of(w.k, layout, rank)},
      v{tokens, shard_of(w.v, layout, rank)}, dout{tokens, shard_of(w.dout, layout, rank)};
  const tensor out{tokens}, dq{tokens}, dk{tokens}, dv{tokens};
  const comm::detail::device_memory rows{static_cast<std::size_t>(batch * heads * tokens) * sizeof(float)};
  const view<float, 3> lse{static_cast<float*>(rows.data()), {batch, heads, tokens}};
  maskring::cuda::workspace scratch;
  const auto exec = maskring::cuda::on(stream, scratch, maskring::cuda::head_dims<dim>);
  driver.forward(exec, inputs{q.read(), k.read(), v.read()}, results{out.span(), lse});
  driver.backward(exec, saved{q.read(), k.read(), v.read(), out.read(), lse},
                  upstream{dout.read()}, gradients{dq.span(), dk.span(), dv.span()});
  c.synchronize(stream); // throws if a peer has failed
  double errors[] = {max_error(out.values(), shard_of(w.out, layout, rank)),
                     std::max({max_error(dq.values(), shard_of(w.dq, layout, rank)),
                               max_error(dk.values(), shard_of(w.dk, layout, rank)),
                               max_error(dv.values(), shard_of(w.dv, layout, rank))})};
  const std::vector<std::byte> all = c.share(std::as_bytes(std::span{errors}));
  for (int r = 0; r < c.size(); ++r) {
    double theirs[2];
    std::memcpy(theirs, all.data() + static_cast<std::size_t>(r) * sizeof(theirs), sizeof(theirs));
    for (int i = 0; i < 2; ++i) errors[i] = theirs[i] <= errors[i] ? errors[i] : theirs[i];
  }
  const bool holds = errors[0] <= 5e-6 && errors[1] <= 5e-5;
  if (rank == 0) {
    std::printf("%-12s output %.2e, gradients %.2e from one GPU's: %s\n", name, errors[0], errors[1],
                holds ? "ok" : "MISMATCH");
  }
  return holds;
}

} // namespace

int main() try {
  comm::nccl c = comm::from_environment({.time_limit = std::chrono::minutes{2}});
  const comm::detail::stream stream = comm::detail::make_stream();
  const index_t tokens = 512 * c.size() + 37; // shards differ in size
  const mask::causal causal{};
  const whole_problem w = solve(tokens, causal, stream.get());
  const cp::shape shape{batch, heads, heads, dim, dim};
  if (c.rank() == 0) {
    std::printf("float32, causal, %ld tokens over %d ranks, zigzag\n", static_cast<long>(tokens), c.size());
  }
  const shard::zigzag zigzag{tokens, c.size()};
  bool holds = check("ring", c, cp::ring{c, shape, zigzag, causal}, zigzag, w, stream.get());
  holds &= check("all-gather", c, cp::all_gather{c, shape, zigzag, causal}, zigzag, w, stream.get());
  if (heads % c.size() == 0) {
    holds &= check("ulysses", c, cp::ulysses{c, shape, zigzag, causal}, zigzag, w, stream.get());
  }
  if (c.size() % 2 == 0) {
    const shard::subdivided mesh{shard::zigzag{tokens, c.size() / 2}, 2};
    holds &= check("hybrid", c, cp::hybrid{c, shape, mesh, causal}, mesh, w, stream.get());
  }
  return holds ? 0 : 1;
} catch (const std::invalid_argument& error) {
  std::fprintf(stderr, "flex_attention_cp_nccl: %s\n", error.what());
  return 2;
} catch (const std::exception& error) {
  std::fprintf(stderr, "flex_attention_cp_nccl: %s\n", error.what());
  return 1;
}
