// SPDX-License-Identifier: Apache-2.0
// Keeps device copies of the tables that named masks and score modifiers read.
#pragma once

#include <maskring/cuda/tables.cuh>

#include <memory>
#include <vector>

namespace examples {

/// host_tables' like for a device: views are of copies made in the order of a stream. The masks
/// made with it are for kernels; their host twins come from host_tables.
class device_tables {
public:
  explicit device_tables(cudaStream_t stream) : queue_{stream} {}

  template <class Table>
  auto operator()(const Table& table) {
    auto kept = std::make_shared<maskring::cuda::device_table<Table>>(queue_, table);
    kept_.push_back(kept);
    cudaStreamSynchronize(queue_.stream()); // the host table goes with this call
    return kept->view();
  }

private:
  struct queue {
    cudaStream_t of;
    cudaStream_t stream() const { return of; }
  };
  queue queue_;
  std::vector<std::shared_ptr<const void>> kept_;
};

} // namespace examples
