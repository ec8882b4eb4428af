# SPDX-License-Identifier: Apache-2.0
# Sourced by run.sh and test.sh, in the checkout: finds or installs what the build needs, then
# configures it in $build. POSIX sh.
#
# What is there already is used. What is missing is installed, and named before it is:
#   with apt-get, as root or through sudo: g++, meson, ninja-build, and for tests doctest-dev and
#   pkg-config;
#   else from PyPI into $build-tools, if Python is there: meson and ninja.

build=${MASKRING_BUILD:-$PWD/build}

have() { command -v "$1" >/dev/null 2>&1; }

say() { printf '%s\n' "maskring: $*" >&2; }

give_up() {
  say "$*"
  exit 1
}

compiles() { # compiles SOURCE: whether the C++ compiler takes it as C++20
  printf '%s\n' "$1" | ${CXX:-c++} -std=c++20 -fsyntax-only -x c++ - >/dev/null 2>&1
}

have_compiler() { compiles '#include <bit>
#include <concepts>
static_assert(std::integral<int>);'; }

have_meson() { # 1.0 or later, and able to start
  case $(meson --version 2>/dev/null) in
    '' | 0.*) return 1 ;;
  esac
}

have_doctest() { compiles '#include <doctest/doctest.h>'; }

# What is missing, as names of Debian and Ubuntu packages.
missing_packages() {
  have_compiler || echo g++
  have_meson || echo meson
  have ninja || have ninja-build || echo ninja-build
  if [ "$1" = test ]; then
    have_doctest || echo doctest-dev
    have pkg-config || echo pkg-config
  fi
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

apt() { # apt-get with the options that "$apt_options" holds
  # shellcheck disable=SC2086
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq $apt_options "$@" >&2
}

# A minimal Ubuntu may know its main component only, and meson is in universe: install from a list
# that names both, without changing the system's own.
add_universe() {
  universe=$(mktemp)
  apt-get indextargets --format '$(IDENTIFIER) $(SITE) $(RELEASE)' |
    awk '$1 == "Packages" && !seen[$2 $3]++ { print "deb", $2, $3, "main universe" }' >"$universe"
  apt_options="$apt_options -o Dir::Etc::SourceList=$universe -o Dir::Etc::SourceParts=/dev/null"
  apt update
}

install_packages() {
  apt_options='-o Dpkg::Use-Pty=0'
  apt update || say 'apt-get update failed; trying with the package lists there are'
  if grep -qs '^ID=ubuntu' /etc/os-release && ! apt-cache show meson >/dev/null 2>&1; then
    add_universe
  fi
  apt install -y --no-install-recommends "$@" && installed=0 || installed=$?
  rm -f "${universe:-}"
  return "$installed"
}

install_from_pypi() {
  tools=$build-tools
  if ! [ -x "$tools/bin/meson" ]; then
    say "installing meson and ninja from PyPI into $tools: the build needs them"
    python3 -m pip install --quiet --target "$tools" meson ninja >&2 ||
      give_up "PyPI gave no meson and ninja; please install them"
  fi
  PATH=$tools/bin:$PATH
  PYTHONPATH=$tools${PYTHONPATH:+:$PYTHONPATH}
  export PATH PYTHONPATH
}

get_tools() { # get_tools run|test
  # The toolkit's compiler is often installed without being put on PATH.
  if ! have nvcc && [ -x /usr/local/cuda/bin/nvcc ]; then
    PATH=$PATH:/usr/local/cuda/bin
    export PATH
  fi

  missing=$(missing_packages "$1")
  [ -n "$missing" ] || return 0

  if have apt-get && { [ "$(id -u)" = 0 ] || have sudo; }; then
    say "installing" $missing "with apt-get: the build needs them"
    # shellcheck disable=SC2086
    if install_packages $missing; then
      return 0
    fi
    say 'apt-get could not install all of them'
  fi

  have_compiler || give_up 'no C++20 compiler (g++ 12 or clang++ 14, or later); please install one, or name it in CXX'
  if ! have_meson || ! have ninja; then
    have python3 || give_up 'no Meson 1.0 or later with ninja, and no Python to get them with; please install them'
    install_from_pypi
  fi
}

configure() { # configure MESON_ARGUMENT...
  if [ -f "$build/build.ninja" ]; then
    meson setup --reconfigure "$build" "$@" >&2 && return 0
    say 'configuring afresh'
  fi
  # Left by a copy of this checkout elsewhere, by other tools or by a failed try: no use to this one.
  if [ -d "$build/meson-private" ]; then rm -rf "$build"; fi
  meson setup "$build" "$@" >&2
}
