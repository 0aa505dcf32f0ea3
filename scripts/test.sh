#!/usr/bin/env bash
# All tests but the long proofs, two at a time, the longest first; then every episode that they recorded
# through Azure's own runtime.
set -euo pipefail
cd "$(dirname "$0")/.."
DROPFORGE_TEST_EPISODES=$(mktemp -d)
export DROPFORGE_TEST_EPISODES
trap 'rm -rf "$DROPFORGE_TEST_EPISODES"' EXIT
.venv/bin/python -m pytest -m "not soak" -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/e2e/test_zz_replay.py "$@"
.venv/bin/python -m pytest tests/e2e/test_zz_replay.py
