// SPDX-License-Identifier: Apache-2.0
// A user's program of two translation units that both include everything: attends to three tokens
// and checks that the first one sees itself only.
#include <maskring/maskring.hpp>

#include <cstdio>
#include <vector>

bool sees(maskring::verdict expected, const maskring::tile& where); // other.cpp

int main() {
  constexpr maskring::index_t tokens = 3, dim = 2;
  const std::vector<float> q(tokens * dim, 1), k(tokens * dim, 1), v{1, 2, 3, 4, 5, 6};
  std::vector<float> out(tokens * dim), lse(tokens);
  const auto tensor = [](auto* data) { return maskring::view{data, {1, 1, tokens, dim}}; };

  maskring::forward(
      maskring::host(), maskring::inputs{tensor(q.data()), tensor(k.data()), tensor(v.data())},
      maskring::results{tensor(out.data()), maskring::view{lse.data(), {1, 1, tokens}}},
      maskring::mask::causal{});

  const bool right = out[0] == 1 && out[1] == 2 && out[4] > 2.99F && out[4] < 3.01F &&
                     sees(maskring::verdict::none, {.q = {0, 127}, .kv = {128, 255}});
  std::puts(right ? "maskring works here" : "wrong result");
  return right ? 0 : 1;
}
