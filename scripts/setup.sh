#!/usr/bin/env bash
# Makes .venv from the lock, and .venv-runtime (Python 3.13, the real worker's library) where a 3.13 can be found.
# Runs again in well under a second when nothing has changed. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

command -v "$python" >/dev/null || { echo "setup: no '$python' on the PATH; set PYTHON to a Python 3.11, 3.12 or 3.13" >&2; exit 1; }
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
    3.11 | 3.12 | 3.13) ;;
    *) echo "setup: '$python' is Python $version; wanted is 3.11, 3.12 or 3.13 (set PYTHON)" >&2; exit 1 ;;
esac

# make_venv FOLDER INTERPRETER LOCK [editable]
make_venv() {
    local stamp wanted
    wanted="$("$2" -c 'import sys; print(sys.version)') $(sha256sum "$3") $(pwd)"
    stamp="$1/.dropforge-setup"
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return
    echo "setup: making $1 with $("$2" -c 'import platform; print("Python", platform.python_version())') (a minute or two, once)"
    rm -rf "$1"
    "$2" -m venv "$1" || { echo "setup: '$2 -m venv' failed; on Debian, apt-get install python3-venv" >&2; exit 1; }
    "$1/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --require-hashes --requirement "$3"
    if [ "${4:-}" = editable ]; then
        "$1/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
    fi
    echo "$wanted" >"$stamp"
}

# A Python 3.13: on the PATH, or installed by pyenv though not chosen.
find_313() {
    local found
    for found in python3.13 "$(command -v pyenv >/dev/null && pyenv root)"/versions/3.13*/bin/python3.13; do
        if "$found" -c 'import sys; assert sys.version_info[:2] == (3, 13)' 2>/dev/null; then echo "$found"; return; fi
    done
}

make_venv .venv "$python" requirements/dev.txt editable
if [ "$version" != 3.13 ]; then
    other=$(find_313)
    if [ -n "$other" ]; then make_venv .venv-runtime "$other" requirements/runtime.txt; fi
fi
