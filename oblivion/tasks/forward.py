"""Run the forward pass with outputs at chosen positions only.

Most positions of a training row are prompt or padding; on a large vocabulary their logits would cost more
than the whole network. The decoder runs once over the batch and the head only where a label is predicted.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

HIDDEN = "hidden:"
"""The kind of output that is a block's hidden state begins so, and ends with the block's number."""
_PROBE_IDS = (1, 2, 3, 4)


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_is_linear(model: Any) -> bool:
    """Return whether head(decoder(x)) is the model's logits, by trying once; it is not if they are scaled or capped.

    While it is tried the head gives out numbers from -1000 to 1000: whatever a model does to logits shows on them, also
    a cap that leaves the small ones alone. For a head with an adapter of its own the answer is no, because its input
    has to be whole sequences.
    """
    import torch

    model = _plain(model)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if decoder is None or decoder is model or decoder is head or head is None or hasattr(head, "lora_A"):
        return False
    known = getattr(model, "_oblivion_linear_head", None)
    if known is None:
        ids = torch.tensor([_PROBE_IDS], device=model.device)
        seen: list[Tensor] = []
        given: list[Tensor] = []

        def swap(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            seen.append(inputs[0])
            given.append(torch.linspace(-1000, 1000, output.numel()).to(output).view_as(output))
            return given[-1]

        training = model.training
        model.eval()  # with dropout the two passes would differ, and would draw from the visit's randomness
        with torch.no_grad():
            hook = head.register_forward_hook(swap)
            try:
                logits = model(input_ids=ids, use_cache=False).logits
            finally:
                hook.remove()
            known = (
                len(seen) == 1
                and logits.dtype == given[0].dtype
                and torch.equal(logits, given[0])
                and torch.equal(seen[0], decoder(input_ids=ids, use_cache=False).last_hidden_state)
            )
        model.train(training)
        model._oblivion_linear_head = known
    return bool(known)


def outputs_at(
    model: Any,
    ids: Tensor,
    rows: Tensor,
    positions: Tensor,
    wants: Collection[str] = ("logits",),
    mask: Tensor | None = None,
    places: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute outputs of a causal LM at chosen positions; what `wants` does not name is not computed.

    Parameters
    ----------
    model : transformers or peft model
        Any causal LM.
    ids : Tensor (B, L) int64
        Right-padded token ids.
    rows, positions : Tensor (T,) int64
        Where outputs are wanted: row and position in the row.
    wants : collection of str
        ``"logits"``, and ``"hidden:<n>"`` for the hidden state after block n (0 is the embedding).
    mask : Tensor (B, 1, L, L), optional
        What is added to the attention scores; by default every token sees those before it, which is right for
        padding on the right, and cheaper.
    places : Tensor (B, L) int64, optional
        Position ids; by default 0, 1, 2, ...

    Returns
    -------
    dict of str to Tensor
        Logits (T, V) and hidden states (T, d), in at least fp32.
    """
    plain = _plain(model)
    layers = {want: int(want.removeprefix(HIDDEN)) for want in wants if want.startswith(HIDDEN)}
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    inputs |= {} if places is None else {"position_ids": places}
    inputs |= {"output_hidden_states": True} if layers else {}
    outputs: dict[str, Tensor] = {}
    if head_is_linear(plain):
        found = plain.get_decoder()(**inputs)
        if "logits" in wants:
            outputs["logits"] = plain.get_output_embeddings()(found.last_hidden_state[rows, positions])
    else:
        found = plain(**inputs)
        if "logits" in wants:
            outputs["logits"] = found.logits[rows, positions]
    outputs |= {want: found.hidden_states[layer][rows, positions] for want, layer in layers.items()}
    return {want: _at_least_single(tensor) for want, tensor in outputs.items()}


def _at_least_single(tensor: Tensor) -> Tensor:
    import torch

    return tensor if tensor.dtype == torch.float64 else tensor.float()
