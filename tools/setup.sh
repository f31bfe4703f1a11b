# Sourced by tools/demo and tools/test: makes ready what this machine lacks.
#
# lmfs_setup [EXTRAS] installs FUSE, a compiler and Python's venv module with apt if they are
# missing, and with the extra dev the programs that tests run; then lmfs with these extras into
# .venv in the repository. Safe to run twice: the second time it only looks. Leaves $python set to
# the environment's interpreter.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '\033[1m== %s\033[0m\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

lmfs_packages() {
    local missing=() tool
    command -v fusermount3 >/dev/null || missing+=(fuse3)
    ldconfig -p | grep -q 'libfuse3\.so' || missing+=(libfuse3-3)
    command -v c++ >/dev/null || missing+=(build-essential)
    command -v python3 >/dev/null || missing+=(python3)
    command -v tar >/dev/null || missing+=(tar)
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then missing+=(python3-venv); fi
    if ! python3 -c 'import sysconfig, os, sys
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' 2>/dev/null; then
        missing+=(python3-dev)
    fi
    if [[ " $* " == *" dev "* ]]; then
        for tool in fio git rsync strace; do
            command -v $tool >/dev/null || missing+=($tool)
        done
    fi
    [ ${#missing[@]} -eq 0 ] && return 0
    command -v apt-get >/dev/null || die "please install: ${missing[*]}"
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "please install as root: ${missing[*]}"
        sudo=(sudo)
    fi
    say "Installing ${missing[*]}"
    "${sudo[@]}" apt-get update -qq
    # the package that brings libfuse3.so.3 has another name since Debian 13 and Ubuntu 25.04
    local names=()
    for name in "${missing[@]}"; do
        if [ "$name" = libfuse3-3 ] && ! apt-cache show libfuse3-3 >/dev/null 2>&1; then
            name=libfuse3-4
        fi
        names+=("$name")
    done
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq "${names[@]}" >/dev/null
}

# What the environment was made from: the build description and the native core.
lmfs_fingerprint() {
    (cd "$root" && cat pyproject.toml lmfs/native/*pp lmfs/native/CMakeLists.txt) |
        sha256sum | cut -d' ' -f1
}

lmfs_setup() {
    lmfs_packages "$@"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "Python 3.11 or newer is needed, this is $(python3 --version)"
    local venv=$root/.venv
    python=$venv/bin/python
    [ -x "$python" ] || { say "Making .venv"; python3 -m venv "$venv"; }
    local extra extras wanted stale=
    wanted=$(lmfs_fingerprint)
    for extra in base "$@"; do # a stamp each: the demonstration finds what the tests installed
        [ "$(cat "$venv/lmfs-$extra.stamp" 2>/dev/null)" = "$wanted" ] || stale=1
    done
    [ -n "$stale" ] || return 0
    say "Building lmfs into .venv (a minute or two)"
    extras=$(IFS=,; echo "$*")
    # not isolated: an editable build finds its build tools again when a source changes
    "$python" -m pip install -q --disable-pip-version-check \
        'scikit-build-core>=0.11' 'nanobind>=2.4' cmake ninja
    "$python" -m pip install -q --disable-pip-version-check --no-build-isolation \
        -e "$root${extras:+[$extras]}"
    for extra in base "$@"; do echo "$wanted" >"$venv/lmfs-$extra.stamp"; done
}
