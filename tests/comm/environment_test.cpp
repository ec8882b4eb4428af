// SPDX-License-Identifier: Apache-2.0
#include <maskring/comm/environment.hpp>

#include <doctest/doctest.h>

#include <map>

namespace {

using maskring::comm::environment;
using maskring::comm::read_environment;
using settings = std::map<std::string, std::string>;

environment read(const settings& vars) {
  return read_environment([&](const char* name) -> std::optional<std::string> {
    const auto found = vars.find(name);
    return found == vars.end() ? std::nullopt : std::optional{found->second};
  });
}

std::string refusal(const settings& vars) {
  try {
    read(vars);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

settings with(settings vars, const settings& more) {
  for (const auto& [name, value] : more) vars[name] = value;
  return vars;
}

const settings torchrun{{"RANK", "5"},
                        {"WORLD_SIZE", "8"},
                        {"LOCAL_RANK", "1"},
                        {"MASTER_ADDR", "n1"},
                        {"MASTER_PORT", "29500"},
                        {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                        {"TORCHELASTIC_RUN_ID", "none"}};
const settings open_mpi{{"OMPI_COMM_WORLD_RANK", "1"},
                        {"OMPI_COMM_WORLD_SIZE", "2"},
                        {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                        {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                        {"PMIX_NAMESPACE", "job-17"}};
const settings slurm{{"SLURM_PROCID", "6"},    {"SLURM_NTASKS", "8"},
                     {"SLURM_LOCALID", "2"},   {"SLURM_STEP_NODELIST", "gpu[07-09,12].site"},
                     {"SLURM_JOB_ID", "4711"}, {"SLURM_STEP_ID", "0"}};

} // namespace

TEST_CASE("environment: torchrun") {
  const environment e = read(torchrun);
  CHECK(e.launcher == "torchrun");
  CHECK(e.rank == 5);
  CHECK(e.size == 8);
  CHECK(e.local_rank == 1);
  CHECK(e.address == "n1");
  CHECK(e.port == 29500);
  CHECK(e.port_taken);
}

TEST_CASE("environment: Open MPI on one machine needs no address") {
  const environment e = read(open_mpi);
  CHECK(e.launcher == "Open MPI");
  CHECK(e.rank == 1);
  CHECK(e.size == 2);
  CHECK(e.local_rank == 1);
  CHECK(e.address == "127.0.0.1");
  CHECK(e.port >= 20000);
  CHECK(e.port ==
        read(with(open_mpi, {{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}}))
            .port);
  CHECK_FALSE(e.port_taken);
}

TEST_CASE("environment: Slurm names its first node") {
  const environment e = read(slurm);
  CHECK(e.launcher == "Slurm");
  CHECK(e.rank == 6);
  CHECK(e.size == 8);
  CHECK(e.local_rank == 2);
  CHECK(e.address == "gpu07.site");
  CHECK(e.port >= 20000);
  const auto first = [](const char* nodes) {
    return read(with(slurm, {{"SLURM_STEP_NODELIST", nodes}})).address;
  };
  CHECK(first("a1") == "a1");
  CHECK(first("a1,a2") == "a1");
  CHECK(first("a[3,5]") == "a3");
  CHECK(first("a[3-5],b1") == "a3");
  CHECK(read(with(slurm, {{"MASTER_ADDR", "other"}, {"MASTER_PORT", "77"}})).address == "other");
  CHECK(read(with(slurm, {{"MASTER_ADDR", "other"}, {"MASTER_PORT", "77"}})).port == 77);
}

TEST_CASE("environment: a process on its own is one rank") {
  const environment e = read({});
  CHECK(e.launcher == "none");
  CHECK(e.rank == 0);
  CHECK(e.size == 1);
}

TEST_CASE("environment: launchers inside one another") {
  CHECK(read(with(slurm, open_mpi)).launcher == "Open MPI");
  CHECK(read(with(slurm, torchrun)).launcher == "torchrun");
  CHECK(read(with(open_mpi, torchrun)).launcher == "torchrun");
  // Set by hand, and unlike what mpirun says: one of them is wrong.
  settings by_hand = with(open_mpi, torchrun);
  by_hand.erase("TORCHELASTIC_RUN_ID");
  const std::string text = refusal(by_hand);
  CHECK(contains(text, "contradict"));
  CHECK(contains(text, "RANK=5"));
  CHECK(contains(text, "OMPI_COMM_WORLD_RANK=1"));
}

TEST_CASE("environment: what is missing or wrong is named together with what was found") {
  const auto without = [](settings vars, const char* name) {
    vars.erase(name);
    return refusal(vars);
  };
  CHECK(contains(without(torchrun, "RANK"), "RANK is not set; found"));
  CHECK(contains(without(torchrun, "RANK"), "WORLD_SIZE=8"));
  CHECK(contains(without(torchrun, "WORLD_SIZE"), "WORLD_SIZE is not set; found RANK=5"));
  CHECK(contains(without(torchrun, "LOCAL_RANK"), "LOCAL_RANK is not set"));
  CHECK(contains(without(torchrun, "MASTER_ADDR"), "MASTER_ADDR is not set"));
  CHECK(contains(without(torchrun, "MASTER_PORT"), "MASTER_PORT is not set"));
  CHECK(contains(without(open_mpi, "PMIX_NAMESPACE"), "MASTER_PORT is not set"));
  CHECK(contains(without(open_mpi, "OMPI_COMM_WORLD_LOCAL_SIZE"), "MASTER_ADDR is not set"));
  CHECK(contains(refusal({{"LOCAL_RANK", "0"}}), "RANK and WORLD_SIZE are not set"));
  CHECK(contains(refusal(with(torchrun, {{"RANK", "8"}})),
                 "RANK is '8', expected a number from 0 to 7"));
  CHECK(contains(refusal(with(torchrun, {{"RANK", "two"}})), "RANK is 'two'"));
  CHECK(contains(refusal(with(torchrun, {{"RANK", ""}})), "RANK is ''"));
  CHECK(contains(refusal(with(torchrun, {{"WORLD_SIZE", "0"}})), "WORLD_SIZE is '0'"));
  CHECK(contains(refusal(with(torchrun, {{"LOCAL_RANK", "6"}})), "LOCAL_RANK is '6'"));
  CHECK(contains(refusal(with(torchrun, {{"MASTER_PORT", "65536"}})), "MASTER_PORT is '65536'"));
  CHECK_NOTHROW(
      read({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}, {"NCCL_COMM_ID", "n1:4000"}}));
}
