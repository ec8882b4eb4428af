// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <maskring/core/verdict.hpp>

#include <vector>

using namespace maskring;

namespace {

// The truths that a verdict leaves open.
std::vector<bool> possible(verdict v) {
  if (v == verdict::none) return {false};
  if (v == verdict::all) return {true};
  return {false, true};
}

template <class F>
void check_against_truth_table(F f) {
  for (verdict a : {verdict::none, verdict::some, verdict::all}) {
    for (verdict b : {verdict::none, verdict::some, verdict::all}) {
      bool can_hold = false, can_fail = false;
      for (bool x : possible(a)) {
        for (bool y : possible(b)) (f(x, y) ? can_hold : can_fail) = true;
      }
      const verdict expected = !can_fail ? verdict::all : !can_hold ? verdict::none : verdict::some;
      CHECK(kleene{f(kleene{a}, kleene{b})}.value() == expected);
    }
  }
}

} // namespace

TEST_CASE("Kleene's connectives follow from two-valued logic") {
  check_against_truth_table([](auto a, auto b) { return a && b; });
  check_against_truth_table([](auto a, auto b) { return a || b; });
  check_against_truth_table([](auto a, auto b) { return a != b; });
  check_against_truth_table([](auto a, auto b) { return a == b; });
  check_against_truth_table([](auto a, auto) { return !a; });
}

TEST_CASE("bool mixes with kleene, and an author's verdict depends on every axis") {
  const kleene some = verdict::some;
  CHECK((some & false).value() == verdict::none);
  CHECK((true || some).value() == verdict::all);
  CHECK((some ^ true).value() == verdict::some);
  CHECK(some.depends() == every_axis);
  CHECK(kleene{true}.depends() == 0);
}
