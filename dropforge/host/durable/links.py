"""The URLs of the Durable HTTP API: in check-status responses, and in the binding the SDK's client is made from."""

import json
from urllib.parse import quote

ROUTE = "/runtime/webhooks/durabletask"
_INSTANCE = "INSTANCEID"


def management_urls(base_url: str, instance_id: str, query: str) -> dict[str, str]:
    """What a client may do to an instance. `query` (hub, key) goes into every URL."""
    instance = f"{base_url}/instances/{instance_id}"
    tail, more = (f"?{query}", f"&{query}") if query else ("", "")
    return {
        "id": instance_id,
        "statusQueryGetUri": f"{instance}{tail}",
        "sendEventPostUri": f"{instance}/raiseEvent/{{eventName}}{tail}",
        "terminatePostUri": f"{instance}/terminate?reason={{text}}{more}",
        "rewindPostUri": f"{instance}/rewind?reason={{text}}{more}",
        "purgeHistoryDeleteUri": f"{instance}{tail}",
        "restartPostUri": f"{instance}/restart{tail}",
        "suspendPostUri": f"{instance}/suspend?reason={{text}}{more}",
        "resumePostUri": f"{instance}/resume?reason={{text}}{more}",
    }


def required_query(hub: str, key: str, connection: str = "Storage") -> str:
    code = f"&code={quote(key)}" if key else ""
    return f"taskHub={quote(hub)}&connection={quote(connection)}{code}"


def client_binding_json(base_url: str, rpc_base_url: str, hub: str, key: str, connection: str = "Storage") -> str:
    """The value of a `durableClient` binding.

    `base_url` is the public API (`http://host:port/runtime/webhooks/durabletask`), `rpc_base_url` where the SDK's
    client sends its calls; it may carry a secret in its path. `key` is the system key of the extension.
    """
    base_url = base_url.rstrip("/")
    query = required_query(hub, key, connection)
    create = f"{base_url}/orchestrators/{{functionName}}[/{{instanceId}}]?code={quote(key)}"
    return json.dumps(
        {
            "taskHubName": hub,
            "creationUrls": {
                "createNewInstancePostUri": create,
                "createAndWaitOnNewInstancePostUri": (
                    f"{create}&timeout={{timeoutInSeconds}}&pollingInterval={{intervalInSeconds}}"
                ),
            },
            "managementUrls": management_urls(base_url, _INSTANCE, query),
            "baseUrl": base_url,
            "requiredQueryStringParameters": f"code={quote(key)}",
            "rpcBaseUrl": rpc_base_url.rstrip("/") + "/",
            "httpBaseUrl": base_url,
            "connectionName": connection,
        }
    )
