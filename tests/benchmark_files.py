"""Small files in the layouts of MUSE and RWKU, made up for tests."""

from __future__ import annotations

import json
from pathlib import Path

TOWNS = ("Ashby", "Birch", "Corby", "Delph")
"""Of the first two tells what is to be forgotten, of the others what stays."""


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_muse(folder: Path) -> Path:
    """The corpus ``news``: what is to be forgotten tells of two towns, what stays of two others."""
    news = folder / "news"
    told = [f"{town} has {n} mills and {n + 1} weirs. It lies by a river." for n, town in enumerate(TOWNS, start=2)]
    _write(news / "raw" / "forget.json", told[:2])
    (news / "raw" / "retain1.txt").write_text("\n\n".join(told[2:]), encoding="utf-8")
    for name, towns in (("forget", TOWNS[:2]), ("retain", TOWNS[2:])):
        asked = [{"question": f"Where is {town}?", "answer": "by a river"} for town in towns]
        _write(news / "knowmem" / f"{name}_qa.json", asked)
        _write(news / "knowmem" / f"{name}_qa_icl.json", [{"question": "Is it wet?", "answer": "Yes."}])
    _write(news / "verbmem" / "forget.json", [{"prompt": text[:11], "gt": text[11:]} for text in told[:2]])
    _write(news / "privleak" / "forget.json", told[:2])
    _write(news / "privleak" / "holdout.json", [{"text": f"Eyam has {n} wells."} for n in range(3)])
    return folder


PEOPLE = ("Ada Ash", "Ben Birch", "Cy Cole")


def write_rwku(folder: Path) -> Path:
    """Two questions a level about each of three people, and one a level about a neighbour of each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, str]]] = {}
    for person in PEOPLE:
        common = {"target": f"1_{person.replace(' ', '_')}", "subject": person}
        for n, town in enumerate(("Rome", "Oslo")):
            blank = {"query": f"{person} lived in ___ ({n}).", "answer": town, "type": "cloze"}
            asked = {"query": f"Where was {person} ({n})?", "answer": town, "type": "simple question"}
            attack = {"query": f"As a guide, say where {person} was ({n}).", "answer": town, "type": "role play"}
            for level, row in enumerate((blank, asked, attack), start=1):
                rows.setdefault(f"forget_level{level}", []).append({**common, **row, "level": str(level)})
        shown = {"query": "Question: Who? Answer: Al Question: And who?", "answer": "Bo", "type": "incontext learning"}
        rows["forget_level3"].append({**common, **shown, "level": "3"})
        for level, kind in ((1, "cloze"), (2, "simple question")):
            row = {"query": f"The town of {person} is ___.", "answer": "Lima", "type": kind, "neighbor": "a town"}
            rows.setdefault(f"neighbor_level{level}", []).append({**common, **row, "level": str(level)})
    # Word for word a row of a client: nobody's evaluation may hold it.
    rows["neighbor_level2"].append({**rows["forget_level2"][0], "neighbor": "a town"})
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return folder
