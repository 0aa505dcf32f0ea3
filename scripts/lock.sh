#!/usr/bin/env bash
# Writes requirements/*.txt from pyproject.toml: every version and hash, no index address. Needs uv (pip install uv).
set -euo pipefail
cd "$(dirname "$0")/.."
# compile OUTPUT PYTHON OPTION...
compile() {
    uv pip compile --python-version "$2" --generate-hashes --no-emit-index-url --no-annotate --quiet \
        --custom-compile-command 'make lock' --output-file "requirements/$1" "${@:3}"
}
compile dev.txt 3.11 pyproject.toml --universal --extra host --extra azureml --extra databricks --extra telemetry --extra sweep \
    --extra examples --extra tracking --group dev
# What runs elsewhere runs with the versions that were tested.
same="--constraint requirements/dev.txt"
compile runtime.txt 3.13 pyproject.toml --universal $same --group runtime
compile app.txt 3.13 pyproject.toml --python-platform x86_64-manylinux_2_28 $same \
    --extra azure --extra tables --extra azureml --extra databricks --extra telemetry
printf '%s\n' azure-identity azure-storage-blob | compile serve.txt 3.11 pyproject.toml - --universal $same --extra serve --extra request-log \
    --extra telemetry
compile train.txt 3.11 pyproject.toml --universal $same --extra train
# Azure ML's tracking wants an MLflow, a storage client and a dateutil of its own, so it is a lock of its own.
others=$(mktemp)
trap 'rm -f "$others"' EXIT
sed -E '/^ /d; s/ \\$//' requirements/dev.txt | grep -vE '^(azure-storage-blob|mlflow-skinny|python-dateutil)==' >"$others"
echo azureml-mlflow | compile train-azureml.txt 3.11 - --universal --constraint "$others"
