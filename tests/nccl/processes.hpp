// SPDX-License-Identifier: Apache-2.0
// Runs this test program again, as the ranks of a job.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

extern char** environ;

namespace maskring::testing {

struct ended_process {
  bool ended = false; ///< false: killed because it took too long
  int status = -1;    ///< as waitpid gives it
  double seconds = 0;
  bool exited_with(int code) const {
    return ended && WIFEXITED(status) && WEXITSTATUS(status) == code;
  }
};

/// `ranks` processes of this program that run the test cases whose names match, with the variables
/// that torchrun would set.
inline std::vector<ended_process> run_job(int ranks, const std::string& cases,
                                          std::map<std::string, std::string> variables,
                                          std::chrono::seconds limit) {
  std::random_device random;
  const int port = 30000 + static_cast<int>(random() % 20000);
  variables["WORLD_SIZE"] = std::to_string(ranks);
  variables["MASTER_ADDR"] = "127.0.0.1";
  variables["MASTER_PORT"] = std::to_string(port);
  std::vector<pid_t> running;
  for (int rank = 0; rank < ranks; ++rank) {
    variables["RANK"] = variables["LOCAL_RANK"] = std::to_string(rank);
    std::vector<std::string> words;
    for (char** v = environ; *v; ++v) {
      const std::string word = *v;
      if (!variables.count(word.substr(0, word.find('=')))) words.push_back(word);
    }
    for (const auto& [name, value] : variables) words.push_back(name + "=" + value);
    std::vector<char*> env;
    for (std::string& word : words) env.push_back(word.data());
    env.push_back(nullptr);
    std::string program = "/proc/self/exe", filter = "--test-case=" + cases, quiet = "--minimal";
    char* arguments[] = {program.data(), filter.data(), quiet.data(), nullptr};
    pid_t pid = 0;
    if (posix_spawn(&pid, program.c_str(), nullptr, nullptr, arguments, env.data()) == 0) {
      running.push_back(pid);
    }
  }
  const auto begin = std::chrono::steady_clock::now();
  std::vector<ended_process> out(running.size());
  for (std::size_t left = running.size(); left > 0;) {
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
    for (std::size_t i = 0; i < running.size(); ++i) {
      if (running[i] == 0) continue;
      if (waitpid(running[i], &out[i].status, WNOHANG) == running[i]) {
        out[i].ended = true;
      } else if (passed > limit) {
        kill(running[i], SIGKILL);
        waitpid(running[i], nullptr, 0);
      } else {
        continue;
      }
      out[i].seconds = passed.count();
      running[i] = 0;
      --left;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds{5});
  }
  return out;
}

inline bool started_as_rank() { return std::getenv("MASKRING_TEST_JOB") != nullptr; }

} // namespace maskring::testing
