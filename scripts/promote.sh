#!/usr/bin/env bash
# Makes a pipeline what its folder says (FOLDER), puts a model version behind its endpoint (VERSION), or both, and waits.
# PIPELINE names it, BY who asks; DROPFORGE_URL and DROPFORGE_AUDIENCE (or DROPFORGE_KEY) the app: docs/cli.md.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${PIPELINE:?name the pipeline: make promote PIPELINE=flights VERSION=3}"
# A form that cannot be left empty holds a space.
read -r FOLDER <<<"${FOLDER:-}"
read -r VERSION <<<"${VERSION:-}"
if [ -z "$FOLDER$VERSION" ]; then
    echo "promote: give FOLDER, VERSION or both" >&2
    exit 2
fi
if [ -n "$FOLDER" ]; then
    .venv/bin/dropforge apply -- "$PIPELINE" "$FOLDER"
fi
if [ -n "$VERSION" ]; then
    .venv/bin/dropforge promote --wait ${BY:+--by "$BY"} -- "$PIPELINE" "$VERSION"
fi
