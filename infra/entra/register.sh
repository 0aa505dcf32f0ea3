#!/usr/bin/env bash
# Makes the Entra application that guards the app, or makes it what it should be again, and tells the azd environment:
#     infra/entra/register.sh
# You need to be allowed to register applications and to assign app roles (Cloud Application Administrator). You get the role
# Approver yourself, Azure Monitor's action groups the role Operator. No secret is made.
set -euo pipefail
cd "$(dirname "$0")"
: "${AZURE_ENV_NAME:=$(azd env get-value AZURE_ENV_NAME)}"
name="dropforge-$AZURE_ENV_NAME"
graph=https://graph.microsoft.com/v1.0
# Microsoft's: the sender of secure webhooks.
action_groups=461e8683-5575-4561-ac7f-899cc907d62a

id_of() { python3 -c 'import json, sys; print(next(r["id"] for r in json.load(open("app-roles.json")) if r["value"] == sys.argv[1]))' "$1"; }
patch() { az rest --method patch --url "$graph/applications/$object" --headers content-type=application/json --body "@$1"; }

# principal ROLE: gives it unless it has it.
assign() {
    local role has
    role=$(id_of "$2")
    has=$(az rest --method get --url "$graph/servicePrincipals/$service/appRoleAssignedTo" \
        --query "value[?principalId=='$1' && appRoleId=='$role'] | length(@)" --output tsv)
    [ "$has" != 0 ] || az rest --method post --url "$graph/servicePrincipals/$service/appRoleAssignedTo" \
        --headers content-type=application/json --output none \
        --body "{\"principalId\": \"$1\", \"resourceId\": \"$service\", \"appRoleId\": \"$role\"}"
}

principal_of() { az ad sp show --id "$1" --query id --output tsv 2>/dev/null || az ad sp create --id "$1" --query id --output tsv; }

client=$(az ad app list --filter "displayName eq '$name'" --query '[0].appId' --output tsv)
[ -n "$client" ] || client=$(az ad app create --display-name "$name" --sign-in-audience AzureADMyOrg --query appId --output tsv)
object=$(az ad app show --id "$client" --query id --output tsv)
az ad app update --id "$client" --identifier-uris "api://$client" --app-roles @app-roles.json
# Version 2 of tokens: their issuer is the one that App Service is told to believe.
patch api.json
# The Azure CLI may ask for a token as whoever ran `az login`; the dropforge command does.
patch preauthorized.json
service=$(principal_of "$client")

assign "$(principal_of "$action_groups")" Dropforge.Operator
me=$(az ad signed-in-user show --query id --output tsv 2>/dev/null || true)
[ -z "$me" ] || assign "$me" Dropforge.Approver

azd env set DROPFORGE_API_CLIENT_ID "$client"
azd env set DROPFORGE_API_OBJECT_ID "$object"
echo "register: $name is $client; \`azd provision\` makes the app believe its tokens"
