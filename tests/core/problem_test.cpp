// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <maskring/core/problem.hpp>

#include <functional>
#include <limits>
#include <string>

using namespace maskring;

namespace {

float memory[4096];
float lse_memory[64];

view<float, 4> tensor(index_t b, index_t h, index_t s, index_t d) { return {memory, {b, h, s, d}}; }

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string forward_error(view<float, 4> q, view<float, 4> k, view<float, 4> v, view<float, 4> out,
                          options opt = {}) {
  return message_of([&] { detail::check_forward(inputs{q, k, v}, results{out}, opt); });
}

} // namespace

TEST_CASE("a problem that fits gives its sizes") {
  const auto q = tensor(2, 4, 5, 8), kv = tensor(2, 2, 7, 8), v = tensor(2, 2, 7, 6);
  const auto p = detail::check_forward(
      inputs{q, kv, v}, results{tensor(2, 4, 5, 6), view<float, 3>{lse_memory, {2, 4, 5}}}, {});
  CHECK(p == problem{2, 4, 2, 5, 7, 8, 6, p.scale});
  CHECK(p.scale == doctest::Approx(1 / std::sqrt(8.0)));
  CHECK(p.group() == 2);
}

TEST_CASE("shapes that disagree are named with what was expected") {
  const auto q = tensor(2, 4, 5, 8), k = tensor(2, 2, 7, 8), out = tensor(2, 4, 5, 8);
  CHECK(forward_error(q, k, k, out) == "");
  CHECK(contains(forward_error(q, tensor(1, 2, 7, 8), k, out), "k has batch extent 1, expected 2"));
  CHECK(contains(forward_error(q, tensor(2, 2, 7, 4), k, out), "k has dim extent 4, expected 8"));
  CHECK(contains(forward_error(q, k, tensor(2, 2, 6, 8), out),
                 "v has sequence extent 6, expected 7"));
  CHECK(contains(forward_error(q, k, k, tensor(2, 4, 4, 8)),
                 "out has sequence extent 4, expected 5"));
  CHECK(contains(forward_error(q, tensor(2, 3, 7, 8), tensor(2, 3, 7, 8), out),
                 "q has 4 heads, expected a multiple of the 3 heads of k"));
  CHECK(contains(forward_error({nullptr, {2, 4, 5, 8}}, k, k, out), "q is a null pointer"));
  CHECK(contains(forward_error({memory, {2, 4, 5, 8}, {1, 1, 1, 2}}, k, k, out),
                 "q has stride 2 on dim, expected 1"));
  CHECK(contains(forward_error({memory, {2, 4, -5, 8}}, k, k, out), "q has sequence extent -5"));
}

TEST_CASE("options that make no sense are refused") {
  const auto q = tensor(1, 1, 2, 8);
  for (float scale :
       {-1.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    CHECK(contains(forward_error(q, q, q, q, {.scale = scale}), "scale is"));
  }
  CHECK(contains(forward_error(q, q, q, q, {.tile = {0, 128}}), "tile is 0 x 128"));
}

TEST_CASE("backward checks its gradients too") {
  const auto q = tensor(1, 2, 3, 8);
  const view<float, 3> lse{lse_memory, {1, 2, 3}};
  const auto error = [&](view<float, 4> dq, view<float, 4> dk, view<float, 3> log_sum) {
    return message_of([&] {
      detail::check_backward(saved{q, q, q, q, log_sum}, upstream{q}, gradients{dq, dk, q}, {});
    });
  };
  CHECK(error(q, q, lse) == "");
  CHECK(contains(error(tensor(1, 2, 4, 8), q, lse), "dq has sequence extent 4, expected 3"));
  CHECK(contains(error(q, tensor(1, 2, 3, 4), lse), "dk has dim extent 4, expected 8"));
  CHECK(contains(error(q, q, {lse_memory, {1, 2, 2}}), "lse has sequence extent 2, expected 3"));
}
