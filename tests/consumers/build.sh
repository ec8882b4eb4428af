#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the small program beside this script as a user of the library would, and runs it.
# usage: build.sh pkg_config|cmake_package|meson_subproject|plain_include|nvcc
#        in the environment: MASKRING_SOURCE, MASKRING_BUILD (a Meson build folder), CXX, NVCC
set -eu

skip() {
  echo "skipped: $1"
  exit 77
}

here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -R "$here/program" "$work/program"
cd "$work"

# Installs the library below $work/stage and prints where the file $1 went.
installed() {
  meson install -C "$MASKRING_BUILD" --no-rebuild --quiet --destdir "$work/stage" >&2
  found=$(find "$work/stage" -name "$1")
  [ -n "$found" ] || { echo "$1 is not installed" >&2; exit 1; }
  dirname "$found"
}

case $1 in
  pkg_config)
    command -v pkg-config >/dev/null || skip "no pkg-config"
    PKG_CONFIG_PATH=$(installed maskring.pc)
    export PKG_CONFIG_PATH PKG_CONFIG_SYSROOT_DIR="$work/stage"
    # The words that CXX and pkg-config give are meant to be split.
    # shellcheck disable=SC2046,SC2086
    $CXX -std=c++20 $(pkg-config --cflags maskring) program/*.cpp $(pkg-config --libs maskring) -o consumer
    ./consumer
    ;;
  cmake_package)
    command -v cmake >/dev/null || skip "no cmake"
    cp "$here/cmake_package/CMakeLists.txt" .
    prefix=$(installed maskringConfig.cmake)/../../..
    cmake -G Ninja -S . -B out -D CMAKE_PREFIX_PATH="$prefix" >log || { cat log; exit 1; }
    cmake --build out
    out/consumer
    ;;
  meson_subproject)
    cp "$here/meson_subproject/meson.build" .
    # Not the whole checkout: its build folders and repository are no part of what a user takes in.
    mkdir -p subprojects/maskring
    for part in meson.build meson.options meson_options.txt cmake include; do
      cp -R "$MASKRING_SOURCE/$part" subprojects/maskring/
    done
    meson setup out
    meson compile -C out
    out/consumer
    ;;
  plain_include)
    # shellcheck disable=SC2086
    $CXX -std=c++20 -I "$MASKRING_SOURCE/include" program/*.cpp -pthread -o consumer
    ./consumer
    ;;
  nvcc)
    # shellcheck disable=SC2086
    $NVCC -std=c++20 --expt-relaxed-constexpr -Werror=all-warnings -I "$MASKRING_SOURCE/include" \
      "$here"/cuda_program/*.cu -o consumer
    ./consumer
    ;;
  *)
    echo "build.sh: unknown way '$1', expected one of those in the usage" >&2
    exit 2
    ;;
esac
