"""Files and JSON that somebody made to hang, crash or confuse whoever reads them: one line each, at once."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import command_line
import pytest

from oblivion import run_format
from oblivion.config import RunConfig
from oblivion.data.row_files import read_row_file
from oblivion.errors import InputError, IntegrityError
from oblivion.evaluation import find_target
from oblivion.ledger.keys import Keys
from oblivion.metrics.engine.layout import read_reference
from oblivion.metrics.suites import make_suite
from oblivion.report.reading import read_run
from oblivion.run.directory import RunDirectory
from oblivion.untrusted import DEEPEST, parse_json, parse_toml, read

WHAT = "a thing"
HOSTILE: dict[str, bytes] = {
    "nested objects": b'{"a":' * 100_000,
    "nested lists": b"[" * 100_000 + b"]" * 100_000,
    "nested a little too deeply": b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1),
    "a key twice": b'{"a": 1, "b": {"c": 1, "c": 2}}',
    "NaN": b'{"a": NaN}',
    "minus infinity": b"[-Infinity]",
    "overflow": b"[1e999]",
    "digits": b"1" * 5000,
    "digits of a float": b"0." + b"1" * 5000,
    "half a character": b'["\\ud800"]',
    "UTF-16": "{}".encode("utf-16"),
    "not UTF-8": b'"\xff"',
    "nothing": b"",
    "two documents": b"{} {}",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_json_is_one_line(data: bytes) -> None:
    with pytest.raises(InputError) as caught:
        parse_json(data, "file", WHAT)
    text = str(caught.value)
    assert text.startswith("file: ") and text.endswith(f"; expected {WHAT}")
    assert "\n" not in text and text.isascii() and len(text) < 200


def test_ordinary_json_is_read() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": [1, 2.5, -3e-4, null, true, "\\ud83d\\ude00"]}', "file", WHAT) == {
        "a": [1, 2.5, -3e-4, None, True, "\U0001f600"]
    }
    assert parse_json(b"[" * DEEPEST + b"18446744073709551615" + b"]" * DEEPEST, "file", WHAT)


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "9" * 5000, "a = 1\na = 2", ".".join("a" * 5000)])
def test_hostile_toml_is_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_toml(text, "file", WHAT)
    assert str(caught.value).startswith("file: ") and "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    here = Path.cwd()
    os.chdir(tmp_path)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        os.chdir(here)
        for path, said in {
            tmp_path / "pipe": "is a pipe",
            tmp_path / "link": "is a pipe",
            tmp_path / "socket": "is a socket",
            tmp_path: "is a folder",
            Path("/dev/zero"): "is a device",
            tmp_path / "none": "No such file",
            tmp_path / "a\0b": "cannot be the name of a file",
        }.items():
            with pytest.raises(InputError, match=said):
                read(path, WHAT)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert read(tmp_path / "file", WHAT, most=100) == b"x" * 100
    with pytest.raises(InputError, match="larger than 99 bytes"):
        read(tmp_path / "file", WHAT, most=99)


# The files that commands are given, and those of a run that somebody else may have written


@pytest.fixture
def run(tmp_path: Path) -> Path:
    root = RunDirectory.create(tmp_path / "run", RunConfig(), {}).root
    (root / "metrics.json").write_text("{}")
    return root


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_reference_a_request_and_a_checkpoint_are_refused(run: Path, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"file\.json: "):
        read_reference(path, make_suite("tofu"))
    ask = ("forget", run, "--method", "exclude", "--request", path)
    for words in (ask, ("ledger", "verify", run, "--checkpoint", path)):
        code, _, said = command_line.oblivion(*words)
        assert code in (2, 3) and said.count("\n") == 1 and "file.json: " in said


@pytest.mark.parametrize("name", ["metrics.json", "manifest.json"])
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_the_files_of_a_run_are_refused(run: Path, name: str, data: bytes) -> None:
    (run / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}: "):
        read_run(run)
    with pytest.raises(InputError, match=f"{name}: "):
        RunDirectory(run).read_json(name, {})
    if name == "metrics.json":
        with pytest.raises(InputError, match=f"{name}: "):
            find_target(run)


@pytest.mark.parametrize("content", ["[]", '"head"', "3", '{"head": 3}', '{"head": null}'])
def test_metrics_of_another_shape_are_refused(run: Path, content: str) -> None:
    (run / "metrics.json").write_text(content)
    with pytest.raises(InputError, match=r"metrics\.json: "):
        find_target(run)


def test_hostile_events_are_counted_as_unreadable(run: Path) -> None:
    lines = [*HOSTILE.values(), b'{"event": "refused", "x": "' + b"x" * 2**21 + b'"}', b'{"event": "refused"}']
    (run / "events.jsonl").write_bytes(b"\n".join(line.replace(b"\n", b"") for line in lines))
    events = read_run(run).events
    assert events is not None and events.counts["refused"] == 1
    assert events.unreadable == sum(1 for line in lines if line.strip()) - 1


@pytest.mark.parametrize("data", [*HOSTILE.values(), b"[1]", b"3"], ids=[*HOSTILE, "a list", "a number"])
def test_the_files_beside_the_keys_are_refused(tmp_path: Path, data: bytes) -> None:
    keys = Keys(tmp_path / "keys")
    (tmp_path / "keys" / "checkpoint.json").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"checkpoint\.json: .*restore keys/"):
        keys.read_json("checkpoint.json")


@pytest.mark.parametrize("data", ["{}", "[1]", "[{}]", '[{"client": "a", "samples": 3}]', '[{"samples": null}]'])
def test_a_list_of_exclusions_that_is_none_is_refused(run: Path, data: str) -> None:
    (run / "keys").mkdir()
    (run / "keys" / "exclusions.json").write_text(data)
    with pytest.raises((InputError, IntegrityError), match="keys"):
        find_target(run)


@pytest.mark.parametrize("content", ["a = " + "[" * 5000, "seed = " + "9" * 5000, "seed = 1\n" * 2])
def test_hostile_settings_of_a_run_are_refused(run: Path, content: str) -> None:
    (run / "config.toml").write_text(content)
    for opener in (run_format.open_run, read_run):
        with pytest.raises(InputError, match=r"config\.toml: "):
            opener(run)


def test_pydantic_s_own_text_reaches_nobody(run: Path) -> None:
    (run / "metrics.json").write_text('{"history": [{"branch": "main", "round": "first"}]}')
    with pytest.raises(InputError, match=r'history\.0\.round = "first": expected a whole number'):
        read_run(run)


def test_a_record_of_many_millions_of_characters_is_refused(tmp_path: Path) -> None:
    row = json.dumps({"question": "q", "answer": "a" * (2**24 + 1)})
    for name, text in {"lines.jsonl": '{"question": "q", "answer": "a"}\n' + row, "one.json": row}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=r"a record of more than 16 million characters"):
            read_row_file(tmp_path / name)
