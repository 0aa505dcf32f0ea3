#!/usr/bin/env bash
# Makes .dropforge-cache/torch-<version>: everything of .venv, and PyTorch for examples/digits on top. Prints its Python.
# PyTorch is not in the lock, for it has another build for each accelerator under one version; pip takes the one that it is
# configured for. From PyPI on Linux that is the CUDA build, some gigabytes; a machine without a GPU sets
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=examples/digits/requirements.txt
version=$(sed -n 's/^torch==//p' "$requirements")
folder=.dropforge-cache/torch-$version
stamp=$folder/.dropforge-setup
wanted="$(.venv/bin/python -c 'import sys; print(sys.version)') $(sha256sum "$requirements") $(pwd)"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "torch: making $folder (once; PyTorch is large)" >&2
    rm -rf "$folder"
    .venv/bin/python -m venv "$folder"
    packages=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # addsitedir also follows what .venv itself refers to: this checkout.
    echo "import site; site.addsitedir('$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
        >"$packages/dropforge-venv.pth"
    # What .venv has is taken from there, so that only what is missing comes from the index.
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements" >&2
    echo "$wanted" >"$stamp"
fi
echo "$PWD/$folder/bin/python"
