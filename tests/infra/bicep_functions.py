"""What Bicep's functions give, as far as infra/ uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tests.infra.bicep_types import ANYTHING, TEXT, TRUTH, WHOLE, Bag, Kind, Row, either, settled

_ENVIRONMENT = Bag(
    {
        "name": TEXT,
        "resourceManager": TEXT,
        "portal": TEXT,
        "authentication": Bag({"loginEndpoint": TEXT, "audiences": Row(TEXT), "tenant": TEXT}),
        "suffixes": Bag(
            {
                "storage": TEXT,
                "acrLoginServer": TEXT,
                "keyvaultDns": TEXT,
                "sqlServerHostname": TEXT,
                "azureDatalakeStoreFileSystem": TEXT,
                "azureDatalakeAnalyticsCatalogAndJob": TEXT,
            }
        ),
    }
)


def _union(arguments: list[Kind]) -> Kind:
    """Objects laid over one another, or arrays put together."""
    found = [settled(each) for each in arguments]
    if found and all(isinstance(each, Row) for each in found):
        return Row(either(tuple(each.item for each in found if isinstance(each, Row))))
    fields: dict[str, Kind] = {}
    open_ = False
    for each in found:
        if isinstance(each, Bag):
            fields |= each.fields
            open_ = open_ or each.open
        else:
            open_ = True
    return Bag(fields, open_)


def _concat(arguments: list[Kind]) -> Kind:
    return _union(arguments) if arguments and isinstance(settled(arguments[0]), Row) else TEXT


Result = Kind | Callable[[list[Kind]], Kind]
FUNCTIONS: Mapping[str, Result] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "cidrSubnet",
                "format",
                "guid",
                "join",
                "replace",
                "resourceId",
                "string",
                "subscriptionResourceId",
                "take",
            ),
            TEXT,
        ),
        **dict.fromkeys(("toLower", "toUpper", "trim", "uniqueString", "utcNow"), TEXT),
        **dict.fromkeys(("contains", "empty", "endsWith", "startsWith"), TRUTH),
        **dict.fromkeys(("int", "length", "max", "min"), WHOLE),
        **dict.fromkeys(("filter", "items", "map", "range"), Row(ANYTHING)),
        "split": Row(TEXT),
        "toObject": Bag(open=True),
        "concat": _concat,
        "union": _union,
        "environment": _ENVIRONMENT,
        "resourceGroup": Bag({"id": TEXT, "name": TEXT, "location": TEXT, "tags": Bag(open=True)}),
        "subscription": Bag({"id": TEXT, "subscriptionId": TEXT, "tenantId": TEXT, "displayName": TEXT}),
        "tenant": Bag({"tenantId": TEXT}),
    }
)
