"""Keeps the ledger of Table storage in a file, and puts it back into an empty table.

    python scripts/ledger_backup.py save FILE
    python scripts/ledger_backup.py restore FILE [--again]

DROPFORGE_LEDGER (or DROPFORGE_STORAGE) names the account, as in the settings of the app. Stop the app first: rows are read
page by page, which is no moment in time. When a copy may be put back, and when it would lose files: docs/operate.md.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import AzureError

from dropforge.adapters.azure import places
from dropforge.adapters.azure.ledger import TableLedger
from dropforge.adapters.azure.storage import mapped
from dropforge.domain.errors import BadInput, DropforgeError, Refused

if TYPE_CHECKING:
    from azure.data.tables import TableClient

# Of one transaction: the service takes 100 rows and 4 MiB.
ROWS, BYTES = 100, 2 * 1024 * 1024
# The columns that hold bytes, as the ledger names them; the others are text.
BYTES_COLUMN = "packed"


def save(table: TableClient, file: Path) -> int:
    """Write every row to the file; how many there were. The file appears when it is whole."""
    part, rows = file.with_name(f"{file.name}.part"), 0
    with gzip.open(part, "wt", encoding="utf-8") as out:
        for entity in table.list_entities():
            out.write(f"{json.dumps(_told(entity))}\n")
            rows += 1
        # Its being there says that nothing is missing.
        out.write(f"{json.dumps({'rows': rows})}\n")
    part.replace(file)
    return rows


def restore(table: TableClient, file: Path, again: bool = False) -> int:
    """Write every row of the file to the table; how many there were. `again`: goes on where an earlier try ended. Raises
    `Refused` for a table that has rows, `BadInput` for a file that is no copy or not whole; nothing is written then."""
    wanted = sum(1 for _ in _rows(file))
    if not again and next(iter(table.list_entities(results_per_page=1)), None) is not None:
        raise Refused(
            "the table has rows; restore into an empty one, or say --again to go on with an interrupted restore"
        )
    pending: list[Mapping[str, Any]] = []
    size = 0
    for entity, length in _rows(file):
        if pending and (
            entity["PartitionKey"] != pending[0]["PartitionKey"] or len(pending) == ROWS or size + length > BYTES
        ):
            _write(table, pending)
            pending, size = [], 0
        pending.append(entity)
        size += length
    if pending:
        _write(table, pending)
    return wanted


def _write(table: TableClient, entities: list[Mapping[str, Any]]) -> None:
    table.submit_transaction([("upsert", entity, {"mode": "replace"}) for entity in entities])


def _rows(file: Path) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Each row, and about how large it is."""
    rows, said = 0, None
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                told = json.loads(line)
                if "PartitionKey" not in told:
                    said = told["rows"]
                    break
                rows += 1
                yield _untold(told), len(line)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise BadInput(f"{file} is no copy of a ledger, or was cut off: {error}") from error
    if said != rows:
        raise BadInput(f"{file} is not whole: it says that it has {said} rows, found {rows}")


def _told(entity: Mapping[str, Any]) -> dict[str, str]:
    """As JSON, with bytes in base64."""
    return {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
        for name, value in entity.items()
    }


def _untold(told: Mapping[str, str]) -> dict[str, str | bytes]:
    return {name: base64.b64decode(value) if name.startswith(BYTES_COLUMN) else value for name, value in told.items()}


def main(arguments: list[str]) -> int:
    options = argparse.ArgumentParser(prog="ledger_backup", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("what", choices=("save", "restore"))
    options.add_argument("file", type=Path)
    options.add_argument("--again", action="store_true", help="restore over the rows of an interrupted restore")
    options.add_argument("--table", default=places.LEDGER, help="another table than the ledger's")
    given = options.parse_args(arguments)
    try:
        account = os.environ.get("DROPFORGE_LEDGER") or os.environ.get("DROPFORGE_STORAGE")
        if not account:
            raise BadInput("set DROPFORGE_LEDGER to the account's URL: https://<account>.blob.core.windows.net")
        with closing(TableLedger(account, given.table)) as ledger:
            table = ledger._table
            try:
                rows = save(table, given.file) if given.what == "save" else restore(table, given.file, given.again)
            except AzureError as error:
                raise mapped(error, ledger._place) from error
    except DropforgeError as error:
        sys.stderr.write(f"ledger_backup: {error.message}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"ledger_backup: {given.file} cannot be written: {error}; name a file in a folder with room\n")
        return 1
    sys.stdout.write(f"{rows} rows {given.what}d\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
