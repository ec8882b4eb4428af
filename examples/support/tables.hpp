// SPDX-License-Identifier: Apache-2.0
// Keeps the tables that named masks and score modifiers read.
#pragma once

#include <memory>
#include <utility>
#include <vector>

namespace examples {

/// Called with a table (mask::lookup_table), keeps it and returns a view of it that lives as long
/// as this object. A keeper for a device has the same call and returns views of device copies.
class host_tables {
public:
  template <class Table>
  auto operator()(Table table) {
    auto kept = std::make_shared<Table>(std::move(table));
    kept_.push_back(kept);
    return kept->view();
  }

private:
  std::vector<std::shared_ptr<const void>> kept_;
};

} // namespace examples
