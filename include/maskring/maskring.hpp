// SPDX-License-Identifier: Apache-2.0
// Everything that a host-only program needs.
#pragma once

#include <maskring/block/build.hpp>
#include <maskring/block/cache.hpp>
#include <maskring/block/text.hpp>
#include <maskring/core/dual.hpp>
#include <maskring/core/float16.hpp>
#include <maskring/core/problem.hpp>
#include <maskring/core/softmax.hpp>
#include <maskring/mask/basic.hpp>
#include <maskring/mask/compose.hpp>
#include <maskring/mask/document.hpp>
#include <maskring/score/concepts.hpp>
#include <maskring/shard/layout.hpp>
#include <maskring/shard/rewrite.hpp>
