"""Whatever the texts are, every layout gives the same samples."""

import csv
import io
import json
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from oblivion.config import DataConfig
from oblivion.data.datasets.jsonl import load

TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=12)
ROWS = st.lists(st.tuples(*[TEXTS.filter(lambda text: bool(text.strip()))] * 2), min_size=1, max_size=4)


def written(rows: list[dict[str, str]]) -> dict[str, str]:
    """File names to contents."""
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    files = {
        "lines.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        "array.json": json.dumps(rows, indent=1),
        "wrapped.json": json.dumps({"data": rows}),
        "columns.json": json.dumps(columns),
        "index.json": json.dumps({key: dict(enumerate(values)) for key, values in columns.items()}),
        "chat.jsonl": "\n".join(
            json.dumps({"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]})
            for q, a in (row.values() for row in rows)
        ),
    }
    for name, delimiter in (("commas.csv", ","), ("semicolons.csv", ";"), ("tabs.tsv", "\t")):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(columns), delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
        files[name] = text.getvalue()
    return files


@given(ROWS)
def test_every_layout_gives_the_same_samples(pairs: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for name, text in written([{"question": q, "answer": a} for q, a in pairs]).items():
            path = Path(folder) / name
            path.write_text(text, encoding="utf-8", newline="")
            made[name] = load(DataConfig(name="jsonl", path=str(path)), clients=1, seed=0).samples
    assert [(row.prompt, row.answer) for row in made["lines.jsonl"]] == pairs
    assert [name for name, samples in made.items() if samples != made["lines.jsonl"]] == []
