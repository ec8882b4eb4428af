#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Sets up what is needed, builds the main job and runs it: attention under a mask, local and with the
# sequence sharded over several ranks, forward and backward, each checked against a dense reference.
#
# usage: scripts/run.sh [OPTION of examples/flex_attention_cp]...     --help lists them
#        --device cuda runs it on the GPUs, where nvcc is
#        MASKRING_BUILD=FOLDER to build elsewhere than in build/
set -eu
cd "$(dirname "$0")/.."
. scripts/setup.sh
get_tools run
# Tests and benchmarks stay as they were configured: this needs only the one program.
if [ -f "$build/build.ninja" ]; then configure; else configure -Dtests=false -Dbench=false; fi
# The program with kernels takes longer to compile: only where it is asked for.
program=flex_attention_cp
case " $* " in
  *' --device cuda '* | *' --device=cuda '*) program=flex_attention_cp_cuda ;;
esac
meson compile -C "$build" "$program" >&2
exec "$build/examples/$program" "$@"
