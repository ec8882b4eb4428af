// SPDX-License-Identifier: Apache-2.0
#include "../../examples/support/any_layout.hpp"
#include "problems.hpp"

#include <maskring/cp/hybrid.hpp>
#include <maskring/cp/ulysses.hpp>

#include <doctest/doctest.h>

#include <sstream>

using namespace maskring;
using namespace maskring::testing;

namespace {

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

} // namespace

TEST_CASE("timeline: a ring's steps, with what was sent and what was skipped") {
  const shard::contiguous split{64, 4};
  const cp::shape shape{1, 4, 4, 8, 8};
  cp::timeline record;
  comm::run_ranks(4, [&](comm::threads& c) {
    cp::ring ring{c, shape, split, mask::causal{}};
    ring.record(&record);
    tensor<float, 4> q{{1, 4, 16, 8}}, k{q}, v{q}, out{q};
    ring.forward(host{1}, inputs{*q, *k, *v}, results{*out});
    ring.record(nullptr);
    ring.forward(host{1}, inputs{*q, *k, *v}, results{*out});
  });
  std::ostringstream text;
  record.write(text);
  const std::string trace = text.str();
  CHECK(trace.front() == '[');
  CHECK(trace.substr(trace.size() - 3) == "\n]\n");
  CHECK(count(trace, "process_name") == 4);
  CHECK(count(trace, "\"cat\": \"compute\"") == 10); // 4 + 3 + 2 + 1 steps
  CHECK(count(trace, "\"cat\": \"skipped\"") == 6);
  CHECK(count(trace, "\"name\": \"forward step 3 skipped\"") == 3);
  CHECK(count(trace, "\"cat\": \"send\"") == count(trace, "\"cat\": \"receive\""));
  CHECK(count(trace, "\"cat\": \"send\"") > 0);
  CHECK(count(trace, "{") == count(trace, "}"));
  CHECK(count(trace, "\n") == count(trace, "\"ph\"") + 2);
}

TEST_CASE("timeline: the other drivers") {
  const cp::shape shape{1, 4, 4, 8, 8};
  const auto trace_of = [&](const auto& split, auto make) {
    cp::timeline record;
    comm::run_ranks(4, [&](comm::threads& c) {
      auto driver = make(c);
      driver.record(&record);
      const index_t n = split.size(c.rank());
      tensor<float, 4> q{{1, 4, n, 8}}, k{q}, v{q}, out{q}, dq{q}, dk{q}, dv{q};
      tensor<float, 3> lse{{1, 4, n}};
      driver.forward(host{1}, inputs{*q, *k, *v}, results{*out, *lse});
      driver.backward(host{1}, saved{*q, *k, *v, *out, *lse}, upstream{*q},
                      gradients{*dq, *dk, *dv});
    });
    std::ostringstream text;
    record.write(text);
    return text.str();
  };
  const shard::zigzag flat{64, 4};
  const std::string gathered = trace_of(flat, [&](comm::threads& c) {
    return cp::all_gather{c, shape, flat, mask::causal{}};
  });
  CHECK(count(gathered, "\"name\": \"forward\"") == 4);
  CHECK(count(gathered, "\"name\": \"backward\"") == 4);
  const std::string by_heads = trace_of(flat, [&](comm::threads& c) {
    return cp::ulysses{c, shape, flat, mask::causal{}};
  });
  CHECK(count(by_heads, "\"cat\": \"compute\", ") >= 8);
  CHECK(count(by_heads, "\"name\": \"inputs to heads\", \"cat\": \"send\"") == 8);
  const shard::subdivided mesh{shard::zigzag{64, 2}, 2};
  const std::string mixed = trace_of(mesh, [&](comm::threads& c) {
    return cp::hybrid{c, shape, mesh, mask::causal{}};
  });
  CHECK(count(mixed, "\"name\": \"forward step 1\"") > 0);
  CHECK(count(mixed, "process_name") == 4);
  CHECK(count(mixed, "\"name\": \"gradients to shards\"") > 0);
}
