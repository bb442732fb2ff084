"""Write the JSON schema of ``metrics.json``, from its records: ``python -m tools.metrics_schema``."""

from __future__ import annotations

import json
from pathlib import Path

from oblivion.run.records import RunRecord

SCHEMA = Path(__file__).parent.parent / "docs" / "metrics.schema.json"


def schema_text() -> str:
    """Return the schema as JSON text."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **RunRecord.model_json_schema()}
    return json.dumps(schema, indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
