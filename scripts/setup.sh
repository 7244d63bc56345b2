#!/bin/sh
# Make .venv and install the course into it, once. Called by make before anything else; when .venv
# is complete and nothing that it depends on has changed, this ends at once.
#
#   sh scripts/setup.sh                       the newest of python3.13, 3.12, 3.11, python3, python
#   PYTHON=/path/to/python3.12 sh scripts/setup.sh
#
# .venv/complete is written last and says what was installed. Without it .venv is unfinished, and
# the next call goes on from wherever the last one was interrupted.
set -u
cd "$(dirname "$0")/.." || exit 1

stop() { # one sentence on what is missing and what to do about it
    echo "setup: $*" >&2
    exit 1
}

venv=.venv
log=$venv/install.log
bin=$venv/bin
case "$(uname -s)" in MINGW* | MSYS* | CYGWIN*) bin=$venv/Scripts ;; esac

# Where the tree lies belongs to it: an editable install does not survive a move.
wanted="$(cat requirements.txt pyproject.toml | cksum) $(pwd)"
if [ -f "$venv/complete" ] && [ "$(cat "$venv/complete")" = "$wanted" ] &&
    "$bin/python" -c "" 2>/dev/null; then
    exit 0
fi

disk_is_full() { # less than 50 MB left where .venv is
    free=$(df -Pk . 2>/dev/null | awk 'NR == 2 { print $4 }')
    [ -n "$free" ] && [ "$free" -lt 51200 ]
}

works() { # is this an interpreter that runs?
    command -v "$1" >/dev/null 2>&1 && "$1" -c "" >/dev/null 2>&1
}
new_enough() {
    "$1" -c "import sys; sys.exit(sys.version_info < (3, 11))"
}
has_venv() {
    "$1" -c "import ensurepip, venv" >/dev/null 2>&1
}
version() {
    "$1" -c "import platform; print(platform.python_version())"
}

# --- 1. a virtual environment ---

if [ -e "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
    if [ -f "$venv/complete" ] || [ -d "$bin" ]; then
        rm -rf "$venv" # an environment that was interrupted, or lost its beginning
    else
        stop "$venv is in the way and no virtual environment: move it, then try again."
    fi
fi
if [ -d "$venv" ] && ! { works "$bin/python" && new_enough "$bin/python" &&
    "$bin/python" -m pip --version >/dev/null 2>&1; }; then
    echo "setup: $venv is unfinished or its Python is gone; making it anew"
    rm -rf "$venv"
fi

if [ ! -d "$venv" ]; then
    python=
    old=
    bare=
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3.13 python3.12 python3.11 python3 python
    fi
    for candidate in "$@"; do
        works "$candidate" || continue
        if ! new_enough "$candidate"; then
            old=${old:-$candidate}
        elif ! has_venv "$candidate"; then
            bare=${bare:-$candidate}
        else
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        [ -n "$bare" ] && stop "$bare ($(version "$bare")) lacks the venv or ensurepip module:" \
            "install it (on Debian and Ubuntu: sudo apt install python3-venv), then try again."
        [ -n "$old" ] && stop "Python 3.11 or newer is needed, and $old is $(version "$old"):" \
            "install a newer one, or name it: make PYTHON=/path/to/python3.12 …"
        [ -n "${PYTHON:-}" ] && stop "PYTHON=$PYTHON is no Python that runs: name another one."
        stop "no Python was found: install Python 3.11 or newer (https://www.python.org/downloads)," \
            "then try again."
    fi
    echo "setup: making $venv with Python $(version "$python")"
    trap 'rm -rf "$venv"; exit 130' INT TERM
    if ! "$python" -m venv "$venv"; then
        rm -rf "$venv"
        disk_is_full && stop "the disk is full: free about 3 GB, then try again."
        stop "Python could not make a virtual environment here, for the reason above."
    fi
    trap - INT TERM
fi

# --- 2. what goes into it ---

rm -f "$venv/complete"
# pip believes a package to be installed as soon as its description is there, and writes this file
# of it after all others: a description without it was interrupted half way.
for description in "$venv"/[Ll]ib*/python*/site-packages/*.dist-info \
    "$venv"/[Ll]ib/site-packages/*.dist-info; do
    if [ -d "$description" ] && [ ! -f "$description/INSTALLER" ]; then
        rm -rf "$description"
    fi
done

install() {
    : >"$log" || stop "the disk is full or read-only: free about 3 GB, then try again."
    "$bin/python" -m pip --disable-pip-version-check install --log "$log" "$@" && return
    status=$?
    [ "$status" -ge 128 ] && stop "interrupted: the next call goes on from here."
    if disk_is_full || grep -q "No space left on device" "$log"; then
        stop "the disk is full: free about 3 GB, then try again."
    elif grep -qiE "Failed to establish a new connection|NewConnectionError|ProxyError|\
Name or service not known|name resolution|Network is unreachable|ConnectTimeout|\
ReadTimeout|Connection (refused|reset|broken)|Max retries exceeded|No route to host" "$log"; then
        stop "packages could not be fetched: connect to the internet (or set your proxy or index" \
            "in pip's configuration), then try again; what was fetched is kept."
    elif grep -q "No matching distribution found" "$log"; then
        stop "a pinned package has no release for Python $(version "$bin/python") on this" \
            "$(uname -sm) machine: delete $venv and try another, as in make PYTHON=python3.12 …"
    fi
    stop "the installation failed, for the reason that pip gives above ($log has all of it)."
}

echo "setup: installing into $venv, once: some minutes, and 2 GB of disk (with CUDA's libraries more)"
install --quiet --upgrade pip
install -r requirements.txt
"$bin/python" -c "import torch, lab" ||
    stop "what was installed does not import, for the reason above: delete $venv and try again."

printf '%s\n' "$wanted" >"$venv/complete.new" && mv "$venv/complete.new" "$venv/complete" ||
    stop "the disk is full: free some, then try again."
