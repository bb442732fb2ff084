"""Check a model folder before transformers sees it: its files, what its config asks for, and its weights' sizes.

A folder may come from anybody. What it says must neither choose code nor make a program reserve memory or build layers
that its weights do not fill; so the config is compared with the headers of the weight files, which are short.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from oblivion.errors import InputError
from oblivion.untrusted import read_json, shown

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_TEMPLATES = "additional_chat_templates"
_LARGEST_CONFIG = 2**24
_IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
_BUILT_IN = re.compile(r"[a-z0-9_]+")
"""The names of implementations that are part of transformers; one with ``/`` or ``:`` is a kernel from the hub."""
_LAYERS = re.compile(r"(^|_)(layers?|blocks)$")
_COUNTS = re.compile(r"^(num|n)_")
_SIZES = re.compile(r"(hidden|vocab|intermediate|ffn|inner|embd|d_model|d_ff|dff|embed_dim|head_dim|_rank)")
_AT_LEAST = 1 << 15
"""Counts and sizes below this are accepted without a look at the weights."""
_SLACK = 64
"""How many times the longest side of a weight a size may be: several may lie in one matrix."""


def check_folder(folder: Path) -> None:
    """Check a model folder's files.

    Parameters
    ----------
    folder : Path
        With ``config.json``, weights in safetensors and a tokenizer. Links, as the hub's cache makes them, may lead
        out of it.

    Raises
    ------
    InputError
        If a file is missing or is no regular file.
    """
    _check_there(folder)
    _check_regular(folder)


def check_settings(folder: Path) -> None:
    """Check what a model folder's config.json and its index of weights say.

    Raises
    ------
    InputError
        If the index names a file outside, or the config asks for code from elsewhere or for sizes that the weights do
        not have.
    """
    config = read_json(folder / "config.json", "the model's settings", most=_LARGEST_CONFIG)
    if not isinstance(config, dict):
        raise InputError(f"{folder}/config.json: is no JSON object; expected the model's settings")
    _check_implementations(folder, config)
    _check_sizes(folder, config)


def _check_there(folder: Path) -> None:
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any(folder.glob("*.safetensors")):
        missing.append("weights (*.safetensors)")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        missing.append("tokenizer (tokenizer.json)")
    if missing:
        raise InputError(f"model folder {folder} has no {', no '.join(missing)}")
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"model folder {folder} holds an adapter_config.json beside the model; merge that adapter first"
        )


def _check_regular(folder: Path) -> None:
    """Refuse pipes, devices and sockets, also behind links: whoever opens one may wait or read for ever."""
    inner = folder / _TEMPLATES
    for path in (*folder.iterdir(), *(inner.iterdir() if inner.is_dir() else ())):
        try:
            mode = path.stat().st_mode
        except OSError:  # the link leads nowhere
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(f"model folder {folder}: {shown(path.name)} is not a regular file; take it out")


def _check_implementations(folder: Path, config: dict[str, Any]) -> None:
    for name, value in _walk(config):
        kind = name.removeprefix("_").removesuffix("_internal")
        if (
            kind in _IMPLEMENTATIONS
            and value is not None
            and not (isinstance(value, str) and _BUILT_IN.fullmatch(value))
        ):
            raise InputError(
                f"{folder}/config.json: {kind} = {shown(value)} is not one of transformers' own, and code from "
                "elsewhere is never run; take the setting out"
            )


def _walk(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a config, those of the tables and lists in it too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(inner, key if not name.endswith("_implementation") else name)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, name)
    else:
        yield name, value


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files that transformers reads.

    Raises
    ------
    InputError
        If the index names anything but files of this folder.
    """
    if (folder / _SINGLE).is_file() or not (folder / INDEX).is_file():
        return [path for path in sorted(folder.glob("*.safetensors")) if path.is_file()]
    index = read_json(folder / INDEX, "the index that transformers writes beside weights")
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise InputError(f"{folder}/{INDEX}: has no weight_map of names; expected what transformers writes")
    for name in set(named.values()):
        if os.path.basename(name) != name or not name.endswith(".safetensors") or not (folder / name).is_file():
            raise InputError(
                f"{folder}/{INDEX}: names the file {shown(name)}; expected *.safetensors files in the same folder"
            )
    return [folder / name for name in sorted(set(named.values()))]


def check_memory(paths: Sequence[Path]) -> None:
    """Refuse weights that the machine's memory cannot hold: a sparse file of any size fits on a disk.

    Raises
    ------
    InputError
        Naming the first file.
    """
    size, memory = sum(path.stat().st_size for path in paths), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise InputError(f"{paths[0]}: the weights have {size >> 20} MiB, and this machine's memory {memory >> 20} MiB")


def _check_sizes(folder: Path, config: dict[str, Any]) -> None:
    """Compare counts and sizes in the config with the weights' headers.

    Raises
    ------
    InputError
        Naming the setting, or the weight file that cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    tensors, longest, elements = 0, 0, 0
    check_memory(weight_files(folder))
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118 (it is no mapping)
                    shape = file.get_slice(name).get_shape()
                    size = 1
                    for side in shape:
                        size *= side
                    tensors, longest, elements = tensors + 1, max([longest, *shape]), elements + size
        except (SafetensorError, OSError, MemoryError) as error:
            raise InputError(
                f"{path}: could not be loaded as safetensors: {' '.join(str(error).split())[:200]}"
            ) from None
    for name, value in _walk(config):
        if type(value) is not int:
            continue
        most = None
        if _LAYERS.search(name):
            most = max(tensors, 64)
        elif _COUNTS.match(name) and "position" not in name and "ctx" not in name:
            most = max(longest, tensors, _AT_LEAST)
        elif _SIZES.search(name):
            most = max(_SLACK * longest, _AT_LEAST)
        if most is not None and value > most:
            raise InputError(
                f"{folder}/config.json: {name[:60]} = {value} is far beyond what the weights hold ({tensors} tensors, "
                f"the longest side {longest}); take config and weights of one model"
            )
