// SPDX-License-Identifier: Apache-2.0
// The main function of every test program that needs a GPU: skips, in so many words, without one.
#define DOCTEST_CONFIG_IMPLEMENT
#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <cstdio>

int main(int argc, char** argv) {
  constexpr int skipped = 77; // what Meson and automake take for "skipped"
  int devices = 0;
  const cudaError_t found = cudaGetDeviceCount(&devices);
  if (found != cudaSuccess || devices == 0) {
    std::printf("skipped: no GPU (%s)\n",
                found != cudaSuccess ? cudaGetErrorString(found) : "no device");
    return skipped;
  }
  return doctest::Context{argc, argv}.run();
}
