#!/usr/bin/env bash
# Builds the images of the inference server and the training node in an Azure container registry, where no Docker is needed
# here, and says which settings make an environment use them. AZURE_CONTAINER_REGISTRY_NAME names the registry; TAG the
# images, by default the commit. DROPFORGE_SERVE_ACCELERATOR, DROPFORGE_TRAIN_ACCELERATOR (cpu, cuda13) and
# DROPFORGE_TRAIN_FRAMEWORKS are the Dockerfiles' arguments.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${AZURE_CONTAINER_REGISTRY_NAME:?name the registry; \`azd env get-value AZURE_CONTAINER_REGISTRY_NAME\` knows it}"
registry=$AZURE_CONTAINER_REGISTRY_NAME
tag=${TAG:-$(git rev-parse --short=12 HEAD)}
server=$(az acr show --name "$registry" --query loginServer --output tsv)

# build NAME FILE ARGUMENT=VALUE...: by digest, because what was tested is what runs, whoever moves the tag.
build() {
    local digest argument given=()
    for argument in "${@:3}"; do
        if [ -n "${argument#*=}" ]; then given+=(--build-arg "$argument"); fi
    done
    az acr build --registry "$registry" --image "$1:$tag" --file "infra/docker/$2.Dockerfile" --platform linux/amd64 \
        ${given[@]+"${given[@]}"} . >&2 || return
    digest=$(az acr manifest show-metadata --registry "$registry" --name "$1:$tag" --query digest --output tsv) || return
    echo "$server/$1@$digest"
}
serving=$(build dropforge-serving serving "ACCELERATOR=${DROPFORGE_SERVE_ACCELERATOR:-}")
training=$(build dropforge-training training "ACCELERATOR=${DROPFORGE_TRAIN_ACCELERATOR:-}" \
    "FRAMEWORKS=${DROPFORGE_TRAIN_FRAMEWORKS:-}")
echo "DROPFORGE_SERVE_IMAGE=$serving"
echo "DROPFORGE_TRAIN_IMAGE=$training"
