// SPDX-License-Identifier: Apache-2.0
// The job of examples/flex_attention_cp with a process a GPU, with the same checks:
//
//   torchrun --nproc-per-node 8 --no-python flex_attention_cp_nccl
//   mpirun -n 8 flex_attention_cp_nccl          srun -n 8 flex_attention_cp_nccl
//
// On several machines mpirun needs MASTER_ADDR and MASTER_PORT.
#include "../flex_attention_cp/checks.hpp"
#include "../flex_attention_cp/dense.hpp"
#include "../flex_attention_cp/device.cuh"
#include "../flex_attention_cp/options.hpp"

#include <maskring/comm/nccl.cuh>
#include <maskring/cp/all_gather.hpp>
#include <maskring/cp/hybrid.hpp>
#include <maskring/cp/ring.hpp>
#include <maskring/cp/ulysses.hpp>

namespace {

using namespace maskring;
using comm::nccl;
using examples::any_layout;
using examples::command_line;

constexpr const char* methods[] = {"all", "ring", "all-gather", "ulysses", "hybrid"};

constexpr examples::option own_options[] = {
    {"method", "M",
     "how the ranks work together: ring, all-gather, ulysses, hybrid\n(two ranks to a shard), or "
     "all "
     "that suit the sizes (all)"},
    {"limit", "SECONDS", "after which a rank that hears nothing from another gives up (60)"},
    {"help", nullptr, "this text"},
};

void print_help() {
  std::printf(
      "usage: torchrun --nproc-per-node N --no-python flex_attention_cp_nccl [OPTION]...\n\n"
      "Computes attention on one GPU and with the sequence split over all processes, forward\n"
      "and backward, and checks both against a dense reference in double precision.\n\n%s\n"
      "A MASK is full, causal, sliding_window:W or prefix_lm:P.\n\n"
      "Exit status: 0 if all checks hold, 1 if not, 2 for options or variables of the launcher\n"
      "that cannot be used.\n",
      command_line::list(flex::with_problem_options(own_options)).c_str());
}

/// The masks that this program has kernels for, behind one type.
struct device_mask {
  enum { full, causal, window, prefix } kind = full;
  int argument = 0;

  constexpr auto operator()(auto, auto, auto q, auto kv) const -> decltype(q >= kv) {
    switch (kind) {
    case causal:
      return q >= kv;
    case window:
      return (q >= kv) & (q - kv <= argument);
    case prefix:
      return (q >= kv) | (kv < argument);
    default:
      return decltype(q >= kv){true};
    }
  }
};

device_mask mask_named(const flex::settings& s) {
  const auto colon = s.mask.find(':');
  const std::string name = s.mask.substr(0, colon);
  const auto argument = [&] {
    return colon == std::string::npos ? 0 : std::stoi(s.mask.substr(colon + 1));
  };
  if (name == "full") return {};
  if (name == "causal") return {device_mask::causal, 0};
  if (name == "sliding_window") return {device_mask::window, argument()};
  if (name == "prefix_lm") return {device_mask::prefix, argument()};
  throw std::invalid_argument("--mask is " + s.mask +
                              ", expected full, causal, sliding_window:W or prefix_lm:P on GPUs "
                              "(the kernels are compiled for these)");
}

/// A rank's tokens of all arrays.
template <class T, class Layout>
flex::whole<T> shard_of(flex::whole<T>& all, const flex::sizes& n, const Layout& layout, int rank) {
  using arrays = flex::whole<T>;
  arrays mine{n, static_cast<int>(layout.size(rank))};
  for (const auto part : {&arrays::q, &arrays::k, &arrays::v, &arrays::dout, &arrays::out,
                          &arrays::dq, &arrays::dk, &arrays::dv}) {
    flex::each_token(all.*part, mine.*part, layout.map(rank),
                     [](const T* from, T* to, int dim) { std::copy_n(from, dim, to); });
  }
  return mine;
}

/// The largest of all ranks' errors.
double largest(nccl& c, double error) {
  const std::vector<std::byte> all = c.share(std::as_bytes(std::span{&error, 1}));
  for (int rank = 0; rank < c.size(); ++rank) {
    double theirs = 0;
    std::memcpy(&theirs, all.data() + static_cast<std::size_t>(rank) * sizeof(double),
                sizeof(double));
    error = theirs <= error ? error : theirs; // a NaN counts
  }
  return error;
}

/// The whole problem, solved on this rank's GPU and by definition.
struct solved {
  flex::whole<float> local;
  flex::whole<double> reference;
  double largest_score;

  solved(const flex::settings& s, const device_mask& mask)
      : local{s.n, s.n.tokens}, reference{s.n, s.n.tokens} {
    flex::fill_normal(local, s.seed);
    largest_score = flex::dense(s.n, local, mask, score::none{}, reference);
    flex::run(
        local,
        [&](const auto& exec, const auto& in, const auto& to) { forward(exec, in, to, mask); },
        [&](const auto& exec, const auto& in, const auto& up, const auto& to) {
          backward(exec, in, up, to, mask);
        });
  }
};

/// All ranks run a driver; rank 0 says what came of it.
template <class Driver, class Layout>
bool check_driver(const char* name, nccl& c, const flex::settings& s, solved& w,
                  const flex::tolerances& allowed, const Layout& layout, Driver&& driver) {
  flex::whole<float> mine = shard_of(w.local, s.n, layout, c.rank());
  const flex::whole<float> local = mine;
  const flex::whole<double> reference = shard_of(w.reference, s.n, layout, c.rank());
  flex::run_rank(driver, mine);
  c.require_alive(); // a stream that held a failed communicator's work ends too
  const double output = largest(c, max_error(mine.out, local.out));
  const double gradients = largest(c, max_gradient_error(mine, reference));
  if (c.rank() > 0) return output <= allowed.output && gradients <= allowed.gradients;
  const std::string who = name;
  bool holds = flex::check((who + " output = local output").c_str(), output, allowed.output);
  holds &= flex::check((who + " gradients = reference's").c_str(), gradients, allowed.gradients);
  return holds;
}

bool run(nccl& c, const flex::settings& s) {
  const flex::sizes& n = s.n;
  const device_mask mask = mask_named(s);
  const cp::shape shape{n.batch, n.heads, n.kv_heads, n.dim, n.v_dim};
  const any_layout layout{s.layout, n.tokens, c.size()};
  if (c.rank() == 0) {
    std::printf("float32, batch %d, %d heads, %d key heads, dim %d, value dim %d, %d tokens\n"
                "mask %s, %d ranks, layout %s, method %s, device nccl, seed %u\n",
                n.batch, n.heads, n.kv_heads, n.dim, n.v_dim, n.tokens, s.mask.c_str(), c.size(),
                s.layout.c_str(), s.method.c_str(), s.seed);
  }
  solved w{s, mask};
  const flex::tolerances allowed{w.reference, w.largest_score};
  bool holds = true;
  if (c.rank() == 0) {
    flex::print_check_heading();
    holds &= flex::check("local output = dense reference", max_error(w.local.out, w.reference.out),
                         allowed.output);
    holds &= flex::check("local gradients = reference's", max_gradient_error(w.local, w.reference),
                         allowed.gradients);
  }
  // A method that was asked for says itself what does not suit it.
  const auto wanted = [&](const char* method, bool suits) {
    return s.method == method || (s.method == "all" && suits);
  };
  const auto shares = [&](int ranks) {
    return n.heads % ranks == 0 && (n.kv_heads % ranks == 0 || ranks % n.kv_heads == 0);
  };
  const auto check = [&](const char* name, const auto& split, auto&& driver) {
    holds &= check_driver(name, c, s, w, allowed, split, driver);
  };
  if (wanted("ring", true)) check("ring", layout, cp::ring{c, shape, layout, mask});
  if (wanted("all-gather", true))
    check("all-gather", layout, cp::all_gather{c, shape, layout, mask});
  if (wanted("ulysses", shares(c.size())))
    check("ulysses", layout, cp::ulysses{c, shape, layout, mask});
  if (wanted("hybrid", c.size() % 2 == 0 && shares(2))) {
    const shard::subdivided mesh{any_layout{s.layout, n.tokens, std::max(1, c.size() / 2)}, 2};
    check("hybrid", mesh, cp::hybrid{c, shape, mesh, mask});
  }
  return holds;
}

} // namespace

int main(int count, char** words) try {
  const auto options = flex::with_problem_options(own_options);
  const command_line line{count, words, options};
  if (line.has("help")) {
    print_help();
    return 0;
  }
  std::setvbuf(stdout, nullptr, _IOLBF,
               BUFSIZ); // lines appear as checks end, also under a launcher
  nccl c = comm::from_environment(
      {.time_limit = std::chrono::seconds{line.whole("limit", 60, 1, 86400)}});
  flex::settings s = flex::read_problem(line, c.size());
  s.method = line.one_of("method", methods, "all");
  return run(c, s) ? 0 : 1;
} catch (const std::invalid_argument& error) {
  std::fprintf(stderr, "flex_attention_cp_nccl: %s\n", error.what());
  return 2;
} catch (const std::exception& error) {
  std::fprintf(stderr, "flex_attention_cp_nccl: %s\n", error.what());
  return 1;
}
