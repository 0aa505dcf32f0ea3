"""Names of what the platform keeps in a storage account: a container for each reader and writer, so that roles can differ."""

# What people drop is in the container that DROPFORGE_DROP_CONTAINER names.
# Immutable artifacts, by their names. The app writes, jobs and replicas read.
ARTIFACTS = "artifacts"
# Delta tables, a folder each. The app writes, jobs read.
TABLES = "tables"
# `<run>/run.json` (the `RunSpec`) and `<run>/output/` of each run. The app writes the first, jobs the second.
RUNS = "runs"
# `desired/<endpoint>.json` and `replicas/<replica>/<endpoint>.json`. The app writes the first, replicas the second.
SERVING = "serving"
# The table of the ledger.
LEDGER = "dropforge"

# The datastores of the Azure ML workspace over these containers, reached as the identity of whoever asks.
DATASTORES = {ARTIFACTS: "dropforge_artifacts", TABLES: "dropforge_tables", RUNS: "dropforge_runs"}
