"""`python -m dropforge.spec`: prints the JSON schema; `python -m dropforge.spec reference`: the reference of all keys."""

from __future__ import annotations

import sys

from dropforge.spec.reference import reference_text
from dropforge.spec.schema import schema_text

_TEXTS = {"schema": schema_text, "reference": reference_text}


def main(arguments: list[str]) -> int:
    """Writes the text that was asked for to standard output; returns the exit code."""
    wanted = arguments[0] if arguments else "schema"
    if wanted not in _TEXTS or len(arguments) > 1:
        sys.stderr.write(f"wanted one of: {', '.join(_TEXTS)}; found {' '.join(arguments)!r}\n")
        return 2
    sys.stdout.write(_TEXTS[wanted]())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
