"""One base model that stays in memory, with one LoRA adapter whose values are copied in and out.

Nothing is rebuilt per client visit: `ResidentModel.write` overwrites the adapter in place. For evaluation `merged`
folds the adapter into the base where that changes nothing but speed, and restores the base bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oblivion.config import LoraConfig, ModelConfig
from oblivion.data.templates import templates
from oblivion.data.templates.plain import PlainTemplate
from oblivion.data.tokens import Template
from oblivion.errors import ConfigError, IntegrityError
from oblivion.files import write_folder
from oblivion.models.adapter_folder import CONFIG, WEIGHTS, PeftSettings
from oblivion.models.factors import factor_of, initial_values
from oblivion.models.loading import Base, gpu_count, load_base, width_of
from oblivion.models.randomness import ask_for_deterministic_kernels, base_draws, repeats_bits
from oblivion.models.targets import ALL_LINEAR, check_layers, settings_for, without_adapter
from oblivion.parameters import build
from oblivion.tasks.causal_lm import CausalLM
from oblivion.tasks.forward import head_is_linear, outputs_at
from oblivion.types import Adapter

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


_EXACT = ("torch.float32", "torch.float64")


class ResidentModel:
    """A base model with a LoRA adapter attached through peft.

    Parameters
    ----------
    base : Base
        The loaded model; it is changed by attaching the adapter.
    lora : LoraConfig or PeftSettings
        Rank, alpha, dropout and targets; or those of an adapter that PEFT wrote.
    template : Template, optional
        How a question and an answer become text; plain lines by default.

    Attributes
    ----------
    left_out : tuple of str
        Kinds of layers that ``all-linear`` leaves out: experts, and what PEFT would not tell from them.
    task : CausalLM
        How samples become rows, and rows outputs of this model.

    Raises
    ------
    ConfigError
        If no layer of the model matches the targets, or one that does is not linear.
    """

    def __init__(self, base: Base, lora: LoraConfig | PeftSettings, template: Template | None = None) -> None:
        import peft

        self.base = base
        self.task = CausalLM(base.tokenizer, base.max_length, template or PlainTemplate())
        targets = json.loads(lora.text).get("target_modules") if isinstance(lora, PeftSettings) else lora.targets
        warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing", category=FutureWarning)
        try:
            settings = lora.to_peft(base.model) if isinstance(lora, PeftSettings) else settings_for(base.model, lora)
            self.model = peft.get_peft_model(base.model, settings)
        except ValueError as error:
            raise ConfigError(f"lora.targets = {targets!r}: {str(error).splitlines()[0]}") from None
        self.model.eval()
        check_layers(self.model)
        self.left_out = without_adapter(self.model) if targets == ALL_LINEAR else ()
        trainable = ((n.replace(".default.", "."), p) for n, p in self.model.named_parameters() if p.requires_grad)
        self.parameters: dict[str, Parameter] = dict(sorted(trainable))

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        return self.base.tokenizer

    @property
    def max_length(self) -> int:
        """The context in tokens."""
        return self.base.max_length

    @property
    def width(self) -> int:
        """The base model's hidden size."""
        return width_of(self.base.model.config) or int(self.base.model.get_input_embeddings().weight.shape[1])

    @property
    def size_bytes(self) -> int:
        """The memory that the model takes, its adapter included."""
        return sum(p.numel() * p.element_size() for p in self.base.model.parameters())

    @property
    def draws(self) -> tuple[str, ...]:
        """What the base model would draw at random in training mode, which is switched off."""
        return base_draws(self.base.model)

    @property
    def device(self) -> str:
        """Where the model is: ``"cpu"`` or ``"cuda"``."""
        return str(next(iter(self.parameters.values())).device.type)

    @functools.cached_property
    def lora_layers(self) -> dict[str, Any]:
        """The layers that carry an adapter, by the name that their tensors begin with."""
        return {name: module for name, module in self.model.named_modules() if hasattr(module, "lora_A")}

    @functools.cached_property
    def shared(self) -> tuple[str, ...]:
        """The layers with an adapter whose base weight is another layer's too, such as a head tied to the embedding."""
        modules = self.model.get_base_model().modules()
        owners = Counter(id(weight) for module in modules for weight in module.parameters(recurse=False))
        return tuple(name for name, layer in self.lora_layers.items() if owners[id(layer.base_layer.weight)] > 1)

    @functools.cached_property
    def _folds(self) -> bool:
        """Whether the adapter can be folded into the base weights and gives the same as beside them."""
        import torch

        base, layers = self.model.get_base_model(), self.lora_layers.values()
        if self.shared or any(str(layer.base_layer.weight.dtype) not in _EXACT for layer in layers):
            return False
        called: set[Any] = set()
        hooks = [layer.register_forward_hook(lambda module, *_: called.add(module)) for layer in layers]
        try:
            with torch.no_grad():
                base(input_ids=torch.tensor([[1, 2, 3, 4]], device=self.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return called == set(layers)

    def initial_adapter(self, seed: int) -> Adapter:
        """Return the adapter before any training, from the seed and the tensors' names and shapes, never from data."""
        return initial_values({name: tuple(p.shape) for name, p in self.parameters.items()}, seed)

    def read(self) -> Adapter:
        """Copy the adapter's present values out: fp32, on the CPU."""
        import torch

        return {n: p.detach().to("cpu", torch.float32, copy=True) for n, p in self.parameters.items()}

    def write(self, adapter: Adapter) -> None:
        """Overwrite the adapter in place.

        Raises
        ------
        IntegrityError
            If names or shapes are not exactly those of this model's adapter.
        """
        import torch

        check_adapter(adapter, self.parameters)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(adapter[name])

    @contextlib.contextmanager
    def training(self, checkpointing: bool = False, names: Iterable[str] | None = None) -> Iterator[None]:
        """Train the adapter for a while; the base model stays in evaluation mode (`oblivion.models.randomness`).

        Parameters
        ----------
        checkpointing : bool, default False
            Whether activations are computed again in the backward pass.
        names : iterable of str, optional
            The tensors that are trained; all by default.

        Raises
        ------
        ConfigError
            If the model's layers cannot be checkpointed.
        """
        head_is_linear(self.model)  # asked first, because it runs a made-up sequence and sets modes
        layers = self._checkpointed() if checkpointing else ()
        frozen = [p for name, p in self.parameters.items() if names is not None and name not in set(names)]
        for parameter in frozen:
            parameter.requires_grad_(False)
        for layer in layers:
            layer.forward = _computed_again(layer.forward)
        self.drop(True)
        try:
            yield
        finally:
            self.drop(False)
            for layer in layers:
                del layer.forward
            for parameter in frozen:
                parameter.requires_grad_(True)

    def drop(self, on: bool) -> None:
        """Switch the adapter's own dropout on or off; its masks come from torch's generator."""
        for layer in self.lora_layers.values():
            layer.lora_dropout.train(on)

    def _checkpointed(self) -> list[Any]:
        """Return the layers whose activations can be computed again, which transformers does in training mode only."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = [module for module in self.base.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            name = type(self.base.model).__name__
            raise ConfigError(f"train.gradient-checkpointing: {name} has no layers for that; set it to false")
        return layers

    @functools.cached_property
    def repeats_bits(self) -> bool:
        """Whether a visit gives the same bits each time. On a CPU it does; on CUDA a training step is tried."""
        import torch

        if self.device == "cpu":
            return True
        ids = torch.tensor([range(1, 9)] * 2, device=self.device)
        positions = torch.arange(ids.numel(), device=self.device)

        def step() -> None:
            found = outputs_at(self.model, ids, positions // ids.shape[1], positions % ids.shape[1])
            torch.autograd.grad(found["logits"].logsumexp(1).sum(), list(self.parameters.values()))

        return repeats_bits(step)

    @contextlib.contextmanager
    def merged(self) -> Iterator[Any]:
        """Yield the plain model with the adapter in effect, as it is in PEFT when exported; restore the base exactly.

        In fp32 the adapter is folded into the base weights, which is faster. In lower precision the sum would be
        rounded, where a layer shares its weight with another (a head with the embedding) the other would change, and
        where a model reads a layer's weight itself it would find what an adapter beside it does not give: there the
        adapter stays beside the base.
        """
        import torch

        base = self.model.get_base_model()
        if not self._folds:
            yield base
            return
        layers = list(self.lora_layers.values())
        saved = [layer.base_layer.weight.detach().clone() for layer in layers]
        try:
            for layer in layers:
                layer.merge()
            yield base
        finally:
            for layer, weight in zip(layers, saved, strict=True):
                if layer.merged:
                    layer.unmerge()
                with torch.no_grad():
                    layer.base_layer.weight.copy_(weight)

    @contextlib.contextmanager
    def over(self, residual: Adapter) -> Iterator[None]:
        """Fold a residual into the base weights for a while: ``W + (alpha / rank) B A``; then restore the base exactly.

        Parameters
        ----------
        residual : Adapter
            Factors of any rank, named like the adapter's; empty for none.
        """
        import torch

        saved = {}
        try:
            for layer, module in self.lora_layers.items() if residual else ():
                weight = module.base_layer.weight
                a, b = (residual[f"{layer}.{part}.weight"].to(weight.device) for part in ("lora_A", "lora_B"))
                product = module.scaling["default"] * (b @ a)
                saved[layer] = weight.detach().clone()
                with torch.no_grad():
                    weight.copy_(weight.float() + (product.T if module.fan_in_fan_out else product))
            yield
        finally:
            for layer, weight in saved.items():
                with torch.no_grad():
                    self.lora_layers[layer].base_layer.weight.copy_(weight)

    def save(self, adapter: Adapter, folder: Path, base_name: str) -> None:
        """Write an adapter, of the model's rank or another, in PEFT format; it loads in peft and transformers as it is.

        The folder appears whole or not at all.

        Raises
        ------
        OblivionError
            If the disk is full, or `folder` exists already.
        """
        write_folder(folder, self.adapter_files(adapter, base_name))

    def adapter_files(self, adapter: Adapter, base_name: str) -> dict[str, bytes]:
        """Return the files of an adapter's folder by name, as `save` writes them."""
        settings = self.model.peft_config["default"].to_dict()
        own, rank = settings["r"], max((len(t) for name, t in adapter.items() if factor_of(name) == "A"), default=0)
        check_adapter(adapter, {name: _of_rank(name, tensor, rank) for name, tensor in self.parameters.items()})
        settings.update(base_model_name_or_path=base_name, inference_mode=True, r=rank)
        if rank != own:
            settings["lora_alpha"] *= rank / own  # alpha / r stays what it was in training
        text = json.dumps(settings, indent=2, default=lambda v: sorted(v) if isinstance(v, set) else str(v))
        return {CONFIG: f"{text}\n".encode(), WEIGHTS: weight_bytes(adapter)}


def _computed_again(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a layer's forward pass that keeps its inputs alone."""
    from torch.utils.checkpoint import checkpoint

    return functools.partial(checkpoint, forward, use_reentrant=False)


def _of_rank(name: str, tensor: Tensor, rank: int) -> Tensor:
    """Return a placeholder of a tensor's shape with another rank."""
    import torch

    wide, tall = tensor.shape[1], tensor.shape[0]
    return torch.empty((rank, wide) if factor_of(name) == "A" else (tall, rank), device="meta")


def weight_bytes(adapter: Adapter) -> bytes:
    """Return the content of an adapter's weight file in PEFT format."""
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in adapter.items()}, {"format": "pt"})


def check_adapter(adapter: Adapter, like: Mapping[str, Tensor]) -> None:
    """Compare an adapter's names and shapes with what a model expects.

    Raises
    ------
    IntegrityError
        Naming the first tensor that is missing, unknown or of another shape.
    """
    for name in sorted(adapter.keys() | like.keys()):
        if name not in adapter:
            raise IntegrityError(f"adapter tensor {name!r} is missing")
        if name not in like:
            raise IntegrityError(f"adapter tensor {name!r} is unknown to this model")
        if adapter[name].shape != like[name].shape:
            raise IntegrityError(
                f"adapter tensor {name!r} has shape {tuple(adapter[name].shape)}, "
                f"the model expects {tuple(like[name].shape)}"
            )


@functools.lru_cache(maxsize=1)
def load_resident(
    model: ModelConfig, lora: LoraConfig | PeftSettings, max_length: int = 0, template: str = "plain"
) -> ResidentModel:
    """Load a base model and attach a LoRA adapter; a process keeps the last one, so that nobody holds a second copy."""
    if gpu_count():
        ask_for_deterministic_kernels()
    resident = ResidentModel(load_base(model, max_length), lora, build(templates, template, {}, "data.template"))
    _ = resident.repeats_bits  # settled before anybody is trained, because it may set this process's kernels
    return resident
