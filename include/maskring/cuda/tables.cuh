// SPDX-License-Identifier: Apache-2.0
// Device copies of the tables that masks and score modifiers read.
#pragma once

#include <maskring/cuda/detail/block_map/buffer.cuh>
#include <maskring/mask/table.hpp>

namespace maskring::cuda {

/// The copy of a table (of documents, ints, bits…) in device memory, freed in the order of the
/// stream it was made on.
///
/// ```cpp
/// auto host = mask::document_table::from_lengths(lengths);
/// cuda::device_table docs{exec, host};
/// mask::document mask{docs.view(), mask::causal{}};  // for kernels and cuda::make_block_map
/// ```
/// The view has the host table's serial number, so caches know it for the same table. A mask on it
/// can be copied and compared on the host, but not evaluated there.
template <mask::lookup_table Table>
class device_table {
public:
  using view_type = decltype(std::declval<const Table&>().view());

  /// @throws cuda::error.
  template <class Executor>
  device_table(const Executor& exec, const Table& table)
      : memory_{exec.stream(), table.memory().size_bytes()},
        view_{table.view_at(memory_.template at<element>(0))} {
    detail::require_cuda(cudaMemcpyAsync(memory_.template at<element>(0), table.memory().data(),
                                         memory_.bytes(), cudaMemcpyHostToDevice, exec.stream()),
                         "cudaMemcpyAsync of a table");
  }

  const view_type& view() const { return view_; }

private:
  using element =
      std::remove_const_t<typename decltype(std::declval<const Table&>().memory())::element_type>;

  detail::device_buffer memory_;
  view_type view_;
};

template <class Executor, class Table>
device_table(const Executor&, const Table&) -> device_table<Table>;

} // namespace maskring::cuda
