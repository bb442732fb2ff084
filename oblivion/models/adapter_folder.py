"""Read an adapter folder as PEFT writes it: LoRA on linear layers, of any rank, scale and choice of layers.

Allowed in `adapter_config.json` are the settings that PEFT itself applies when it attaches the adapter, and those that
do not change what the stored tensors mean. Any other setting is refused by its name unless it has the default of the
installed PEFT, so that settings of later versions are refused, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from oblivion.errors import InputError
from oblivion.models.model_folder import check_memory
from oblivion.models.name_patterns import is_plain, matcher
from oblivion.types import Adapter
from oblivion.untrusted import read_json, shown
from oblivion.validation import faults

if TYPE_CHECKING:
    import peft
    from torch import Tensor

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PICKLE = "adapter_model.bin"

_MOST_NAMES = 4096
_MOST_PATTERNS = 64
_Rank = Annotated[int, Field(ge=1, le=1 << 16)]


class _Attached(BaseModel):
    """Where an adapter goes, its ranks and its scales, which are given to PEFT as they are; PEFT checks no type."""

    model_config = ConfigDict(strict=True, extra="ignore")

    r: _Rank
    lora_alpha: FiniteFloat
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None


_WITHOUT_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "inference_mode",
    "lora_dropout",
    "peft_version",
    "revision",
)
"""The settings that only training uses, and notes on where things came from."""
_ONE_OF: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
"""The values that are harmless. Other initial values (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA) take something out of the
base weights, and what is stored does not say what."""


@dataclass(frozen=True)
class PeftSettings:
    """Where an adapter goes and how it is scaled, as the JSON text of PEFT's settings, and its tensors' shapes."""

    text: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def to_peft(self, model: Any = None) -> peft.LoraConfig:
        """Return PEFT's own object; for a model, it has names in the place of patterns.

        Raises
        ------
        ValueError
            If a pattern means no layer of the model, or a stored tensor does not fit its layer.
        """
        import peft

        from oblivion.models.targets import check_sizes, without_patterns

        settings = json.loads(self.text)
        if model is not None:
            check_sizes(model, self.shapes)
            settings = without_patterns(model, settings)
        return peft.LoraConfig(**settings, task_type="CAUSAL_LM")


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as its folder holds it.

    Attributes
    ----------
    tensors : Adapter
        fp32, by PEFT's names.
    settings : PeftSettings
        What `oblivion.models.resident.ResidentModel` attaches.
    base, revision : str
        The base model that the folder names, and its revision; empty for none.
    """

    tensors: Adapter
    settings: PeftSettings
    base: str
    revision: str


def read_adapter_folder(folder: Path) -> StoredAdapter:
    """Read a PEFT adapter folder: its tensors, its LoRA settings, and the base model it names.

    Raises
    ------
    InputError
        If a file is missing or is not what PEFT writes, or a setting is not supported; the message names it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if (folder / _PICKLE).is_file() and not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder}: {_PICKLE} is a pickle, which can run code; save the adapter as {WEIGHTS}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"{folder} is not a PEFT adapter folder: {name} is missing")
    check_memory([folder / WEIGHTS])
    try:
        settings = read_json(folder / CONFIG, "the settings that PEFT writes beside an adapter")
        given = _check_settings(settings, folder)
        _check_patterns(given, folder)
        tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
        _check_rank(given, tensors, folder)
        shapes = tuple((name, tuple(tensors[name].shape)) for name in sorted(tensors))
        attached = PeftSettings(given.model_dump_json(exclude_none=True, exclude_unset=True), shapes)
        attached.to_peft()
    except ValidationError as error:
        _, where, value, said = next(faults(_Attached, error))
        raise InputError(f"{folder}/{CONFIG}: {shown(where)[1:-1]} = {value}: {said}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError, MemoryError) as error:
        raise InputError(f"{folder}: not a LoRA adapter in PEFT format: {error}") from None
    # Tensors are copied: a mapped file's tensors would change when the file is overwritten to be erased.
    adapter = {name: tensors[name].float().clone() for name in sorted(tensors)}
    if not any(bool(t.any()) for n, t in adapter.items() if ".lora_A." not in n):
        raise InputError(f"{folder}: every B of this adapter is zero, so it changes nothing; was it ever trained?")
    base, revision = (str(settings.get(key) or "") for key in ("base_model_name_or_path", "revision"))
    return StoredAdapter(adapter, attached, base, revision)


def _check_settings(settings: Mapping[str, Any], folder: Path) -> _Attached:
    """Refuse the first setting that could change what the tensors mean; return those that PEFT is given.

    Raises
    ------
    InputError
        Naming it.
    KeyError
        If the settings do not say what adapter it is.
    ValidationError
        If what PEFT is given is missing, or of another type than it takes.
    """
    import peft

    defaults = peft.LoraConfig().to_dict()
    for key, value in {"peft_type": settings["peft_type"], **settings}.items():  # the kind of adapter is checked first
        if key in _Attached.model_fields or key in _WITHOUT_EFFECT:
            continue
        known = _ONE_OF.get(key, (defaults.get(key),))
        if not any(type(value) is type(one) and value == one for one in known) and (key in _ONE_OF or value):
            raise InputError(
                f"{folder}/{CONFIG}: {shown(key)[1:-1]} = {shown(value)} is not supported (only LoRA on linear layers "
                "of a causal language model is); merge the adapter into its base with PEFT and measure the merged model"
            )
    return _Attached.model_validate(settings)


def _check_patterns(given: _Attached, folder: Path) -> None:
    """Refuse what is neither a name nor a pattern that is read; no expression of a file is run.

    Raises
    ------
    InputError
        Naming the setting.
    """
    for key, texts, patterns in _texts(given):
        if len(texts) > _MOST_NAMES or (len(texts) > _MOST_PATTERNS and not all(map(is_plain, texts))):
            most = f"at most {_MOST_NAMES} names, or {_MOST_PATTERNS} patterns, are read"
            raise InputError(f"{folder}/{CONFIG}: {key}: has {len(texts)} of them; {most}")
        for text in texts:
            try:
                if not is_plain(text) and not patterns:
                    raise ValueError("is no name of a layer")
                if not is_plain(text):
                    matcher(text)
            except ValueError as error:
                raise InputError(
                    f"{folder}/{CONFIG}: {key}: {shown(text)} {error}; give the layers by their names in a list, or a "
                    "pattern of letters, '.', '.*', '\\d+' and groups such as '(q_proj|v_proj)'"
                ) from None


def _texts(given: _Attached) -> Iterator[tuple[str, list[str], bool]]:
    """Return the settings with names of layers: each with its texts, and whether they may be patterns."""
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        value = getattr(given, key)
        if value:
            yield key, [value] if isinstance(value, str) else value, isinstance(value, str) and key != "layers_pattern"
    for key in ("rank_pattern", "alpha_pattern"):
        yield key, list(getattr(given, key) or ()), True


def _check_rank(given: _Attached, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse a rank that no stored tensor has: PEFT would make tensors of that size.

    Raises
    ------
    InputError
        Naming the rank.
    """
    stored = max((t.shape[0] for name, t in tensors.items() if ".lora_A." in name and t.dim() == 2), default=0)
    asked = max([given.r, *(given.rank_pattern or {}).values()])
    if stored and asked > stored and given.r > stored:
        raise InputError(
            f"{folder}/{CONFIG}: r = {given.r}, but the highest rank in {WEIGHTS} is {stored}; take both files of one "
            "adapter"
        )
    if stored and asked > stored:
        raise InputError(f"{folder}/{CONFIG}: rank_pattern: has {asked}, but the highest rank in {WEIGHTS} is {stored}")
