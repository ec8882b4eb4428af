// SPDX-License-Identifier: Apache-2.0
// Everything that a host-only program needs.
#pragma once

#include <maskring/block/build.hpp>
#include <maskring/block/cache.hpp>
#include <maskring/block/text.hpp>
#include <maskring/comm/threads.hpp>
#include <maskring/comm/threads.hpp>
#include <maskring/core/dual.hpp>
#include <maskring/core/float16.hpp>
#include <maskring/core/problem.hpp>
#include <maskring/core/softmax.hpp>
#include <maskring/cp/all_gather.hpp>
#include <maskring/cp/host.hpp>
#include <maskring/cp/ring.hpp>
#include <maskring/cpu/host.hpp>
#include <maskring/mask/basic.hpp>
#include <maskring/mask/batched.hpp>
#include <maskring/mask/bits.hpp>
#include <maskring/mask/block_diffusion.hpp>
#include <maskring/mask/block_sparse.hpp>
#include <maskring/mask/compose.hpp>
#include <maskring/mask/cross_intervals.hpp>
#include <maskring/mask/document.hpp>
#include <maskring/mask/lengths.hpp>
#include <maskring/mask/neighbourhood.hpp>
#include <maskring/mask/shared_prefix.hpp>
#include <maskring/mask/sliding_tile.hpp>
#include <maskring/mask/table.hpp>
#include <maskring/mask/tree.hpp>
#include <maskring/mask/video_heads.hpp>
#include <maskring/mask/window.hpp>
#include <maskring/score/concepts.hpp>
#include <maskring/shard/layout.hpp>
#include <maskring/shard/rewrite.hpp>
