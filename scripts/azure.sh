#!/usr/bin/env bash
# Provisions the infrastructure of an azd environment, or deploys the package into it:
#     scripts/azure.sh provision
#     scripts/azure.sh deploy
# AZURE_ENV_NAME, AZURE_SUBSCRIPTION_ID, AZURE_LOCATION and AZURE_RESOURCE_GROUP name it where azd does not know it yet.
set -euo pipefail
cd "$(dirname "$0")/.."

need() { command -v "$1" >/dev/null || { echo "azure: no '$1' on the PATH: $2" >&2; exit 1; }; }
need azd "https://aka.ms/azd"

# A fresh checkout has no azd environment; one that is there is left as it is.
if [ -n "${AZURE_ENV_NAME:-}" ] && ! azd env select "$AZURE_ENV_NAME" 2>/dev/null; then
    : "${AZURE_SUBSCRIPTION_ID:?the subscription of the environment}" "${AZURE_LOCATION:?its region}"
    : "${AZURE_RESOURCE_GROUP:?its resource group}"
    azd env new "$AZURE_ENV_NAME" --subscription "$AZURE_SUBSCRIPTION_ID" --location "$AZURE_LOCATION" --no-prompt
    azd env set AZURE_RESOURCE_GROUP "$AZURE_RESOURCE_GROUP" --no-prompt
fi

case ${1:-} in
    provision)
        need az "https://aka.ms/azure-cli"
        az bicep build --file infra/main.bicep --stdout >/dev/null
        # What it is going to change stands in the log before it is changed.
        azd provision --preview --no-prompt
        azd provision --no-prompt
        ;;
    deploy)
        [ -f dist/app.zip ] || { echo "azure: there is no dist/app.zip; \`make package\` makes it" >&2; exit 1; }
        azd deploy app --from-package dist/app.zip --no-prompt
        ;;
    *)
        echo "azure: say provision or deploy" >&2
        exit 2
        ;;
esac
