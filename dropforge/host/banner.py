"""What the host says once it is ready: where it answers, what it runs, and the keys."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dropforge.host.app import App
from dropforge.host.keys import AuthLevel, Keys
from dropforge.host.topic import PATH as TOPIC_PATH
from dropforge.host.triggers.http import HttpRoute, http_routes

# More routes than anybody reads; an app that has so many describes them itself (OpenAPI).
_MANY = 20


def banner(
    app: App,
    keys: Keys,
    url: str,
    prefix: str,
    state: Path,
    sidecars: Mapping[str, str],
    service_bus: str | None,
    colour: bool,
) -> str:
    """A few lines for the terminal."""

    def bold(text: str) -> str:
        return f"\033[1m{text}\033[0m" if colour else text

    lines = ["", f"{bold('Dropforge host')} is ready at {bold(url)} (process {os.getpid()})", f"  app    {app.folder}"]
    lines += [f"  state  {state}", ""]
    routes, _ = http_routes(app.functions)
    base = f"{url}/{prefix}" if prefix else url
    lines += _routes(routes, base)
    lines.append("")
    lines += _others(app)
    lines += _table([("topic", url + TOPIC_PATH), *sidecars.items()])
    lines += ["", f"  function key  {keys.host['default']}  may do everything"]
    lines += [f"                {keys.host['operator']}  operates, and does not approve"]
    lines += [f"                {keys.host['reader']}  only reads", f"  master key    {keys.master}"]
    if service_bus:
        lines.append(f"  service bus   {service_bus}")
    lines += [f"  all keys in   {state / 'keys.json'}", ""]
    return "\n".join(lines) + "\n"


def _routes(routes: Sequence[HttpRoute], base: str) -> list[str]:
    """The HTTP functions; of very many, only those that need no key."""
    shown = routes if len(routes) <= _MANY else [route for route in routes if route.level is AuthLevel.ANONYMOUS]
    rows = [
        (
            ",".join(sorted(route.methods)) or "any",
            f"{base}/{route.template.template.strip('/')}",
            "" if route.level is AuthLevel.ANONYMOUS else f"[{route.level.value} key]",
        )
        for route in shown
    ]
    if len(shown) < len(routes):
        rows.append((f"{len(routes) - len(shown)} more", f"{base}/...", "[key]"))
    return _table(rows)


def _others(app: App) -> list[str]:
    """The functions behind the other triggers, a paragraph for each kind."""
    names: dict[str, list[str]] = {}
    for function in app.functions:
        if function.trigger.type != "httpTrigger":
            names.setdefault(function.trigger.type.removesuffix("Trigger"), []).append(function.name)
    width = max(map(len, names), default=0)
    found: list[str] = []
    for kind, listed in names.items():
        found += textwrap.wrap(
            ", ".join(listed), 110, initial_indent=f"  {kind:{width}}  ", subsequent_indent=" " * (width + 4)
        )
    return found


def _table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    listed = list(rows)
    widths = [max(len(row[column]) for row in listed) for column in range(len(listed[0]))] if listed else []
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in listed
    ]
