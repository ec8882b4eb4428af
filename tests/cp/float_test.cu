// SPDX-License-Identifier: Apache-2.0
// The drivers on the device with 32-bit floats, several ranks to a GPU.
#include "device_problems.cuh"

using namespace maskring;
using namespace maskring::testing;

TEST_CASE("drivers on a device: floats, as good as one device, whatever the ranks") {
  check_drivers<float>(std::random_device{}(), 1e-6);
}

TEST_CASE("drivers on a device: floats, different lengths and layouts, more ranks than tokens") {
  check_lengths<float>(1e-6);
}
