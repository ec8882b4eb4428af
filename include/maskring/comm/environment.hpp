// SPDX-License-Identifier: Apache-2.0
// Which rank this process is, from the variables that its launcher set.
#pragma once

#include <maskring/core/errors.hpp>

#include <charconv>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace maskring::comm {

/// One of several processes that a launcher has started.
struct environment {
  std::string launcher;    ///< "torchrun", "Open MPI", "Slurm", or "none" for a process on its own
  int rank = 0;            ///< of all processes
  int size = 1;            ///< number of processes
  int local_rank = 0;      ///< of the processes on this machine: the index of this one's GPU
  std::string address;     ///< of the machine of rank 0; empty where no variable tells
  int port = 0;            ///< at that address; 0 where no variable tells
  bool port_taken = false; ///< the launcher itself listens at that port
};

/// Looks up one variable; nothing if it is not set.
using variable_lookup = std::function<std::optional<std::string>(const char*)>;

inline std::optional<std::string> process_variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? std::optional<std::string>{value} : std::nullopt;
}

namespace detail {

/// Variables by name, and a record of those that were looked at, for messages.
class variables {
public:
  explicit variables(const variable_lookup& lookup) : lookup_{lookup} {}

  std::optional<std::string> text(const char* name) {
    std::optional<std::string> value = lookup_(name);
    if (value && seen_.find(" " + std::string{name} + "=") == std::string::npos) {
      seen_ += " " + std::string{name} + "=" + *value;
    }
    return value;
  }
  bool has(const char* name) { return text(name).has_value(); }

  int number(const char* name, int lowest, int highest) {
    const std::optional<std::string> value = text(name);
    if (!value) fail(name, " is not set");
    int out = 0;
    const char* end = value->data() + value->size();
    const auto [stop, status] = std::from_chars(value->data(), end, out);
    if (status != std::errc{} || stop != end || out < lowest || out > highest) {
      fail(name, " is '", *value, "', expected a number from ", lowest, " to ", highest);
    }
    return out;
  }

  template <class... Words>
  [[noreturn]] void fail(const Words&... words) const {
    maskring::detail::bad_argument("from_environment: ", words..., "; found",
                                   seen_.empty() ? " none of the variables" : seen_);
  }

private:
  const variable_lookup& lookup_;
  std::string seen_;
};

/// The names that one launcher gives to the same three numbers.
struct launcher_names {
  const char* launcher;
  const char* rank;
  const char* size;
  const char* local_rank;
};

inline constexpr launcher_names known_launchers[] = {
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
    {"Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"},
};

/// Nothing if none of the launcher's variables of rank and size is set.
inline std::optional<environment> read_numbers(variables& vars, const launcher_names& names) {
  constexpr int most = 1 << 24;
  const bool any = vars.has(names.rank) || vars.has(names.size);
  vars.text(names.local_rank);
  if (!any) return std::nullopt;
  environment out;
  out.launcher = names.launcher;
  out.size = vars.number(names.size, 1, most);
  out.rank = vars.number(names.rank, 0, out.size - 1);
  // A rank's number on its machine cannot be larger than among all.
  out.local_rank = vars.number(names.local_rank, 0, out.rank);
  return out;
}

/// "node[07-09,12],other" begins with node07.
inline std::string first_host(std::string_view list) {
  const std::size_t open = list.find_first_of("[,");
  if (open == std::string_view::npos || list[open] == ',') return std::string{list.substr(0, open)};
  const std::string_view inside = list.substr(open + 1);
  const std::size_t close = list.find(']');
  const std::string_view tail =
      close == std::string_view::npos ? std::string_view{} : list.substr(close + 1);
  return std::string{list.substr(0, open)} +
         std::string{inside.substr(0, inside.find_first_of("-,]"))} +
         std::string{tail.substr(0, tail.find(','))};
}

/// A port for a job whose launcher names none: the same in all its processes, and most likely
/// another in other jobs of the machine.
inline int port_of_job(const std::string& job) {
  constexpr int first = 20000, count = 10000; // below the ports that systems hand out by themselves
  unsigned sum = 0;
  for (const char c : job) sum = sum * 31 + static_cast<unsigned char>(c);
  return first + static_cast<int>(sum % count);
}

inline void read_address(variables& vars, environment& out) {
  if (const auto address = vars.text("MASTER_ADDR")) out.address = *address;
  if (vars.has("MASTER_PORT")) out.port = vars.number("MASTER_PORT", 1, 65535);
  out.port_taken = vars.text("TORCHELASTIC_USE_AGENT_STORE") == "True";

  if (out.address.empty() && out.launcher == "Slurm") {
    auto nodes = vars.text("SLURM_STEP_NODELIST");
    if (!nodes) nodes = vars.text("SLURM_JOB_NODELIST");
    if (nodes) out.address = first_host(*nodes);
  }
  if (out.address.empty() && out.launcher == "Open MPI") {
    // Without an address only processes of one machine can find one another.
    const int here = vars.has("OMPI_COMM_WORLD_LOCAL_SIZE")
                         ? vars.number("OMPI_COMM_WORLD_LOCAL_SIZE", 1, out.size)
                         : 0;
    if (here == out.size) out.address = "127.0.0.1";
  }
  if (out.port == 0 && !out.address.empty() && out.launcher != "torchrun") {
    std::string job;
    for (const char* name : {"SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE",
                             "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_hnp_uri"}) {
      if (const auto part = vars.text(name)) job += *part + '/';
    }
    if (!job.empty()) out.port = port_of_job(job);
  }
}

} // namespace detail

/// Rank and size, the local rank and the address of rank 0, from the variables of torchrun (RANK,
/// WORLD_SIZE, LOCAL_RANK), Open MPI (OMPI_COMM_WORLD_…) or Slurm (SLURM_PROCID, SLURM_NTASKS,
/// SLURM_LOCALID), and MASTER_ADDR and MASTER_PORT with any of them.
///
/// Where several launchers have left their variables, torchrun goes before Open MPI, which goes
/// before Slurm: a job of Slurm's starts the others, not the reverse. Without any of them: one
/// rank.
/// @throws std::invalid_argument listing what was found, where variables are missing, are no
///         numbers, contradict one another (a rank beyond the size; RANK unlike
///         OMPI_COMM_WORLD_RANK, unless torchrun itself set it), or do not say where rank 0 of
///         several is.
inline environment read_environment(const variable_lookup& lookup = process_variable) {
  detail::variables vars{lookup};
  std::optional<environment> out;
  for (const detail::launcher_names& names : detail::known_launchers) {
    // A batch job of Slurm's sets some of its variables in processes that it did not start.
    if (out && out->launcher != "torchrun") break;
    if (out && names.launcher == std::string_view{"Slurm"}) break;
    const std::optional<environment> found = detail::read_numbers(vars, names);
    if (!found) continue;
    if (!out) {
      out = found;
    } else if ((out->rank != found->rank || out->size != found->size) &&
               !vars.has("TORCHELASTIC_RUN_ID")) {
      vars.fail(out->launcher, "'s variables and ", found->launcher, "'s contradict one another");
    }
  }
  if (!out) {
    if (lookup("LOCAL_RANK")) vars.fail("RANK and WORLD_SIZE are not set");
    environment alone;
    alone.launcher = "none";
    return alone;
  }
  detail::read_address(vars, *out);
  if (out->size > 1 && !lookup("NCCL_COMM_ID")) {
    if (out->address.empty()) {
      vars.fail("MASTER_ADDR is not set and nothing else tells where rank 0 is");
    }
    if (out->port == 0) {
      vars.fail("MASTER_PORT is not set and nothing else tells at which port rank 0 is");
    }
  }
  return *out;
}

} // namespace maskring::comm
