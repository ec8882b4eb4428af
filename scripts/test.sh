#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Sets up what is needed, builds everything and runs the tests.
#
# usage: scripts/test.sh [ARGUMENT of `meson test`]...     e.g. --suite host
#        MASKRING_BUILD=FOLDER to build elsewhere than in build/
set -eu
cd "$(dirname "$0")/.."
. scripts/setup.sh
get_tools test
configure -Dtests=true -Dbench=true
rm -f "$build"/meson-logs/testlog*
meson compile -C "$build"
meson test -C "$build" --no-rebuild --print-errorlogs "$@" && status=0 || status=$?
python3 scripts/count_tests.py "$build/meson-logs" || status=1
exit "$status"
