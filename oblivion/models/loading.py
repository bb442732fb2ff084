"""Load a base model and its tokenizer: the built-in tiny one, a folder, or a hub id with a pinned revision."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oblivion.config import ModelConfig
from oblivion.errors import ConfigError, InputError
from oblivion.models.model_folder import check_folder, check_settings, weight_files

TINY = Path(__file__).parent / "tiny"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_BF16_MIN_WIDTH = 512
_PROBE_TOKENS = 4
_NO_LIMIT = 1 << 30
_MOST_BEYOND, _FREE = 4, 1 << 26
"""The most numbers that a model may have for each byte of its weights (some share a weight, some are made), and how
many it may have beyond these."""
_WIDTHS = ("hidden_size", "n_embd", "d_model")
_CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "context_length")
"""The names that configs give these sizes; the first name that a config has counts."""
_CPU = Path("/proc/cpuinfo")
_FAST_BF16 = {"amx_bf16", "avx512_bf16"}


@dataclass(frozen=True)
class Base:
    """A causal language model with its tokenizer.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        In evaluation mode, on `device`, every parameter frozen.
    tokenizer : transformers tokenizer
        With EOS and padding tokens.
    max_length : int
        The context in tokens.
    dtype : str
        ``"float32"`` or ``"bfloat16"``.
    """

    model: Any
    tokenizer: Any
    max_length: int
    dtype: str


def locate(config: ModelConfig, asked: str = "model.name", pinned: str = "set model.revision to a commit") -> str:
    """Return where the model is: a folder, or a hub id.

    Parameters
    ----------
    config : ModelConfig
        Its name and revision.
    asked, pinned : str
        For messages: where the name was given, and how a revision is given.

    Raises
    ------
    InputError
        If it is neither ``tiny``, nor a folder with a model, nor a hub id.
    ConfigError
        If it may be a hub id, but has no pinned revision.
    """
    if config.name == "tiny":
        return str(TINY)
    folder = Path(config.name).expanduser()
    if folder.is_dir():
        check_folder(folder)
        return str(folder)
    missing = f"{asked} = {config.name!r}: there is no such folder"
    if folder.is_absolute() or config.name.startswith((".", "~")) or not _HUB_ID.fullmatch(config.name):
        raise InputError(f"{missing}, and it is no hub id 'owner/name'")
    if not config.revision:
        if folder.parent.is_dir():  # the name is then most likely a mistyped path
            raise InputError(f"{missing} in {folder.parent}; for a hub id of that name, {pinned}")
        raise ConfigError(f"{missing}; if it is a hub id, {pinned}, so that the result can be repeated")
    return config.name


def _check_built(settings: Any, name: str) -> None:
    """Refuse a config whose model would be far larger than its weights: it is built without memory first.

    Raises
    ------
    InputError
        If the weights are those of a smaller model, or the model cannot be built.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
        needed = sum(p.numel() for p in model.parameters()) + sum(b.numel() for b in model.buffers())
    except Exception as error:
        raise InputError(f"model {name!r} could not be built: {_first_line(error)}") from None
    held = sum(path.stat().st_size for path in weight_files(Path(name).expanduser()))
    if needed > _MOST_BEYOND * held + _FREE:
        raise InputError(
            f"model {name!r}: its config.json describes {needed} numbers, and its weights have {held} bytes; take "
            "config and weights of one model"
        )


def resolve_dtype(config: ModelConfig) -> str:
    """Choose the weights' dtype: bfloat16 pays only on wide models and on hardware made for it.

    Returns
    -------
    str
        ``config.dtype``, or for ``auto`` bfloat16 from a width of 512 on where a GPU is there, or a CPU with AMX or
        AVX-512 BF16.
    """
    if config.dtype != "auto":
        return config.dtype
    width = width_of(_read_config(config))
    return "bfloat16" if width >= _BF16_MIN_WIDTH and _fast_bfloat16() else "float32"


def _checked(config: ModelConfig) -> str:
    """Return where the model is, once the settings of a folder were checked."""
    where = locate(config)
    if Path(where).is_dir():
        check_settings(Path(where))
    return where


def _read_config(config: ModelConfig) -> Any:
    """Read the model's config.json.

    Raises
    ------
    InputError
        If it cannot be read, or is of a model for more than text.
    """
    from transformers import AutoConfig

    where = _checked(config)
    try:
        settings = AutoConfig.from_pretrained(where, revision=config.revision or None, trust_remote_code=False)
        text = settings.get_text_config()
    except Exception as error:  # what a file says can end in any
        raise InputError(f"model {config.name!r}: its config.json cannot be used: {_first_line(error)}") from None
    if text is not settings:
        raise InputError(
            f"model {config.name!r}: its config.json (model_type {settings.model_type!r}) has a text_config: "
            "it takes images or sound beside text, which is not supported; give a model for text alone (such as "
            f"{text.model_type!r})"
        )
    if getattr(settings, "quantization_config", None):
        raise InputError(
            f"model {config.name!r}: its config.json has a quantization_config: quantised weights are not supported; "
            "give the model in float32, bfloat16 or float16"
        )
    if getattr(settings, "is_encoder_decoder", False):
        raise InputError(
            f"model {config.name!r}: model_type {settings.model_type!r} with an encoder is not supported; "
            "give a decoder alone, that is a causal language model"
        )
    if "lsh" in (getattr(settings, "attn_layers", None) or ()):
        raise InputError(
            f"model {config.name!r}: model_type {settings.model_type!r} draws its attention at random (lsh)"
        )
    return settings


def _size(settings: Any, names: Sequence[str]) -> int:
    """Return the first of some sizes that a model's config has; 0 if it has none."""
    text = settings.get_text_config()
    values = (getattr(text, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), 0)


def width_of(settings: Any) -> int:
    """Return the hidden size that a model's config names; 0 if it names none."""
    return _size(settings, _WIDTHS)


def context_of(settings: Any) -> int:
    """Return the most tokens that a model's config allows; a very large number if it sets no limit."""
    return _size(settings, _CONTEXTS) or _NO_LIMIT


def gpu_count() -> int:
    """Return the number of GPUs that can be used; 0 without CUDA."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _fast_bfloat16() -> bool:
    if gpu_count():
        return True
    flags = _CPU.read_text(errors="replace").split() if _CPU.is_file() else []
    return not _FAST_BF16.isdisjoint(flags)


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's text, printable and short, because it may repeat what a file says."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return "".join(c if c.isprintable() else "?" for c in line)[:300]


def load_base(config: ModelConfig, max_length: int = 0) -> Base:
    """Load the model and tokenizer that a config names; safetensors only, no remote code.

    Parameters
    ----------
    config : ModelConfig
        Name, revision, dtype.
    max_length : int, default 0
        A shorter context than the model's own; 0 for the model's own.

    Raises
    ------
    InputError
        If weights or tokenizer are missing, malformed or unusable.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    dtype = resolve_dtype(config)
    tokenizer = load_tokenizer(config)
    settings = _read_config(config)
    pad = getattr(settings, "pad_token_id", None)
    if pad is not None and not 0 <= pad < getattr(settings, "vocab_size", _NO_LIMIT):
        settings.pad_token_id = None  # torch makes no embedding whose padding id has no row
    if Path(locate(config)).is_dir():
        _check_built(settings, locate(config))
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            locate(config),
            revision=config.revision or None,
            config=settings,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        raise InputError(f"model {config.name!r} could not be loaded: {_first_line(error)}") from error
    model.requires_grad_(False)
    model.eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    _check_weights(model, loaded["missing_keys"], config.name)
    _check_reading(model, config.name)
    _fit_tokenizer(tokenizer, model, config.name)
    context = context_of(model.config)
    return Base(model, tokenizer, min(context, max_length or context), dtype)


def _check_weights(model: Any, missing: Collection[str], name: str) -> None:
    """Refuse files that lack weights: transformers would draw them at random.

    Raises
    ------
    InputError
        If they lack a weight of a causal language model.
    """
    if missing:
        raise InputError(
            f"model {name!r}: its files lack {len(missing)} weights of a {type(model).__name__}, the first of them "
            f"{min(missing)!r}; they have to hold a whole causal language model, head included"
        )


def _check_reading(model: Any, name: str) -> None:
    """Refuse models whose predictions depend on more than the tokens before them and their positions.

    Raises
    ------
    InputError
        If positions are counted from the padding id on (RoBERTa), or tokens see those behind them (BERT).
    """
    import torch

    kind = f"model {name!r} (model_type {model.config.model_type!r})"
    for part, module in model.named_modules():
        if "position" in part and isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
            raise InputError(
                f"{kind} is not supported: it counts positions from its padding token's id upwards ({part})"
            )
    ids = torch.arange(1, 2 * _PROBE_TOKENS + 1, device=model.device)[None]
    with torch.no_grad():
        whole, part = (
            model(input_ids=ids[:, :n], use_cache=False).logits[0].float() for n in (2 * _PROBE_TOKENS, _PROBE_TOKENS)
        )
    # Every position counts: rounding may send one token to other experts.
    gap = (whole[:_PROBE_TOKENS] - part).abs().amax(1)
    rounding = 1e-3 if model.dtype == torch.float32 else 5e-2
    if bool((gap > rounding * part.abs().amax(1)).all()):
        raise InputError(
            f"{kind} is not supported: what it predicts depends on tokens that come later, so it is no causal language "
            "model (if it was trained as one, its config.json lacks 'is_decoder': true)"
        )


def _fit_tokenizer(tokenizer: Any, model: Any, name: str) -> None:
    """Compare a tokenizer with the rows of the model's embedding; a padding token without a row becomes EOS.

    Raises
    ------
    InputError
        If EOS has no row.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    if tokenizer.eos_token_id >= rows:
        raise InputError(
            f"tokenizer of {name!r}: its EOS token has id {tokenizer.eos_token_id}, but the model has rows 0 to "
            f"{rows - 1} only; resize the model's embeddings, or take the tokenizer that belongs to it"
        )
    if tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_rows = rows  # `oblivion.data.tokens` refuses text that needs another row


def load_tokenizer(config: ModelConfig) -> Any:
    """Load the tokenizer alone; the padding token falls back to EOS, and padded positions are always masked.

    Raises
    ------
    InputError
        If there is none, or it has no EOS token.
    """
    from transformers import AutoTokenizer

    where = _checked(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, revision=config.revision or None, trust_remote_code=False)
    except Exception as error:  # what a file says can end in any
        raise InputError(f"tokenizer of {config.name!r} could not be loaded: {_first_line(error)}") from None
    if tokenizer.eos_token_id is None:
        raise InputError(f"tokenizer of {config.name!r} has no EOS token, so answers would have no end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_digest(config: ModelConfig) -> str:
    """Return SHA-256 over names and bytes of config, weights and tokenizer; for a hub id, the id with its revision."""
    where = locate(config)
    if not Path(where).is_dir():
        return f"{where}@{config.revision}"
    digest = hashlib.sha256()
    for path in _model_files(Path(where)):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _model_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".model", ".txt", ".jinja") and path.is_file():
            yield path
