"""Files and JSON that somebody made to hang, crash or confuse whoever reads them: one line each, at once."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from oblivion.errors import InputError
from oblivion.outside import DEEPEST, parse_json, parse_toml, read

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
