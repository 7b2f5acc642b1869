"""Write src/wishbone/config/run.schema.json, the JSON Schema of a run's YAML file.

    python scripts/write_schema.py [--check]

With `--check` nothing is written, and the exit status is 1 if the file is not what it would be.
"""

from __future__ import annotations

import sys

from wishbone.config.json_schema import SCHEMA, schema_text


def main() -> int:
    """Write the file, or compare it."""
    text = schema_text()
    if "--check" in sys.argv[1:]:
        return int(not SCHEMA.exists() or SCHEMA.read_text(encoding="utf-8") != text)
    SCHEMA.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
