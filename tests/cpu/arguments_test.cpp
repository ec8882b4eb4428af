// SPDX-License-Identifier: Apache-2.0
// Bad arguments: one error each, which names the argument.
#include "attention_cases.hpp"

#include <maskring/mask/basic.hpp>

#include <functional>

namespace {

using namespace maskring;
using namespace maskring::testing;

/// One valid call of each kind, whose parts a test spoils.
struct call {
  tensor<float, 4> q{{2, 4, 8, 16}}, k{{2, 2, 9, 16}}, v{{2, 2, 9, 8}}, out{{2, 4, 8, 8}};
  tensor<float, 4> dk{{2, 2, 9, 16}}, dv{{2, 2, 9, 8}};
  tensor<float, 3> lse{{2, 4, 8}};
  tensor<float, 1> sink{{4}};
  host executor{1};
  options opt;
  block_map map = make_block_map(mask::causal{}, {2, 4, 8, 9});

  void forward() {
    auto in = inputs{*q, *k, *v}.with_sink(*sink);
    maskring::forward(executor, in, results{*out, *lse}, mask::causal{}, map, score::none{}, opt);
  }
  void backward() {
    const auto in = saved{*q, *k, *v, *out, *lse}.with_sink(*sink);
    auto dq = q;
    maskring::backward(executor, in, upstream{*out}, gradients{*dq, *dk, *dv}, mask::causal{}, map,
                       score::none{}, opt);
  }
};

void check_refused(const char* named, const std::function<void(call&)>& spoil) {
  call c;
  CHECK_NOTHROW(c.forward());
  CHECK_NOTHROW(c.backward());
  spoil(c);
  for (const bool back : {false, true}) {
    std::string message;
    try {
      back ? c.backward() : c.forward();
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    CAPTURE(message);
    CAPTURE(named);
    CHECK(message.find(named) != std::string::npos);
    CHECK(message.find(back ? "backward" : "forward") != std::string::npos);
  }
}

} // namespace

TEST_CASE("host attention refuses what does not fit, and says what") {
  check_refused("k has dim", [](call& c) { c.k = tensor<float, 4>{{2, 2, 9, 12}}; });
  check_refused("k has batch", [](call& c) { c.k = tensor<float, 4>{{1, 2, 9, 16}}; });
  check_refused("v has sequence", [](call& c) { c.v = tensor<float, 4>{{2, 2, 7, 8}}; });
  check_refused("q has 3 heads", [](call& c) { c.q = tensor<float, 4>{{2, 3, 8, 16}}; });
  check_refused("out has dim", [](call& c) { c.out = tensor<float, 4>{{2, 4, 8, 9}}; });
  check_refused("lse has sequence", [](call& c) { c.lse = tensor<float, 3>{{2, 4, 9}}; });
  check_refused("sink has 3", [](call& c) { c.sink = tensor<float, 1>{{3}}; });
  check_refused("scale", [](call& c) { c.opt.scale = -1; });
  check_refused("scale", [](call& c) { c.opt.scale = std::nanf(""); });
  check_refused("tile", [](call& c) { c.opt.tile.q = 0; });
  check_refused("threads", [](call& c) { c.executor.threads = -1; });
  check_refused("map is for", [](call& c) {
    c.map = make_block_map(mask::causal{}, {2, 4, 8, 10});
  });
}

TEST_CASE("rows are left open only where their state has room") {
  call c;
  tensor<float, 3> sum{{2, 4, 8}}, small{{2, 4, 7}};
  tensor<bfloat16, 4> q{{2, 4, 8, 16}}, k{{2, 2, 9, 16}}, v{{2, 2, 9, 8}}, out{{2, 4, 8, 8}};
  const auto refusal = [&](const auto& in, const auto& to, const open_rows& open) -> std::string {
    try {
      forward(host{1}, in, to, mask::causal{}, c.map, score::none{}, options{}, open);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "none";
  };
  const auto check = [](const std::string& message, const char* named) {
    CAPTURE(message);
    CHECK(message.find(named) != std::string::npos);
  };
  const inputs floats{*c.q, *c.k, *c.v};
  const inputs bfloats{*q, *k, *v};
  check(refusal(floats, results{*c.out, *c.lse}, {*sum, false, true}), "none");
  check(refusal(floats, results{*c.out, *c.lse}, {*small, false, true}), "open sum has sequence");
  check(refusal(floats, results{*c.out, *c.lse}, {*sum, true, false}), "open.before");
  check(refusal(floats, results{*c.out}, {*sum, false, true}), "open.after");
  check(refusal(bfloats, results{*out, *c.lse}, {*sum, false, true}), "open.after");
}

namespace {

/// A functor that fails in the middle of the work.
struct failing {
  bool operator()(int, int, int q, int kv) const {
    if (q == 150 && kv == 3) throw std::runtime_error{"the mask's own error"};
    return true;
  }
};

} // namespace

TEST_CASE("an exception of the caller's functor reaches the caller") {
  std::mt19937_64 random{10};
  const auto q = random_tensor<float, 4>(random, {1, 1, 600, 32});
  tensor<float, 4> out{{1, 1, 600, 32}}, dq = out, dk = out, dv = out;
  tensor<float, 3> lse{{1, 1, 600}};
  const case_mask partial{case_mask::scattered};
  const block_map map = make_block_map(partial, {1, 1, 600, 600});
  for (int threads : {1, 4}) {
    const host executor{threads};
    CHECK_THROWS_WITH(forward(executor, inputs{*q, *q, *q}, results{*out, *lse}, failing{}, map),
                      "the mask's own error");
    CHECK_THROWS_WITH(backward(executor, saved{*q, *q, *q, *out, *lse}, upstream{*q},
                               gradients{*dq, *dk, *dv}, failing{}, map),
                      "the mask's own error");
  }
}
