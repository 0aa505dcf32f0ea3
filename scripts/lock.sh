#!/usr/bin/env bash
# Writes requirements/*.txt from pyproject.toml: every version and hash, no index address. Needs uv (pip install uv).
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
    uv pip compile pyproject.toml --universal --python-version "$1" --generate-hashes --no-emit-index-url \
        --no-annotate --quiet --custom-compile-command 'make lock' "${@:3}" --output-file "requirements/$2"
}
compile 3.11 dev.txt --extra host --extra azure --extra examples --extra tracking --group dev
compile 3.13 runtime.txt --group runtime
