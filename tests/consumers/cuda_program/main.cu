// SPDX-License-Identifier: Apache-2.0
// Two translation units that both include everything, with a kernel of the user's own.
#include <maskring/cuda.cuh>

#include <cstdio>

bool sees(maskring::verdict expected, const maskring::tile& where); // other.cu

template <class Mask>
__global__ void kept_of_first_keys(Mask mask, int queries, int* kept) {
  const int q = threadIdx.x;
  if (q < queries) kept[q] = mask(0, 0, q, 4);
}

int main() {
  if (!sees(maskring::verdict::none, {.q = {0, 127}, .kv = {128, 255}})) return 1;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("compiled and linked; no GPU to run the kernel on");
    return 0;
  }
  int* kept = nullptr;
  int host[8] = {};
  if (cudaMalloc(&kept, sizeof(host)) != cudaSuccess) return 1;
  kept_of_first_keys<<<1, 32>>>(maskring::mask::causal{}, 8, kept);
  if (cudaMemcpy(host, kept, sizeof(host), cudaMemcpyDeviceToHost) != cudaSuccess) return 1;
  const bool right = host[3] == 0 && host[4] == 1 && host[7] == 1;
  std::puts(right ? "maskring works here" : "wrong result");
  return right ? 0 : 1;
}
