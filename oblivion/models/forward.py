"""The forward pass with logits at chosen positions only.

Most positions of a training row are prompt or padding; on a large vocabulary their logits would cost more
than the whole network. The decoder runs once over the batch and the head only where a label is predicted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_PROBE_IDS = (1, 2, 3, 4)


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_is_linear(model: Any) -> bool:
    """Whether head(decoder(x)) is the model's logits, seen by trying once; models that scale or cap them say no.

    While it is tried the head gives out numbers from -1000 to 1000: whatever a model does to logits shows on them, also
    a cap that leaves the small ones alone. A head with an adapter of its own says no: it belongs to whole sequences.
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


def answer_logits(
    model: Any,
    ids: Tensor,
    rows: Tensor,
    positions: Tensor,
    mask: Tensor | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """Logits of a causal LM at chosen positions.

    Parameters
    ----------
    model : transformers or peft model
        Any causal LM.
    ids : Tensor (B, L) int64
        Right-padded token ids.
    rows, positions : Tensor (T,) int64
        Where logits are wanted: row and position in the row.
    mask : Tensor (B, 1, L, L), optional
        What is added to the attention scores; by default every token sees those before it, which is right for
        padding on the right, and cheaper.
    places : Tensor (B, L) int64, optional
        Position ids; by default 0, 1, 2, ...

    Returns
    -------
    Tensor (T, V)
        At least fp32.
    """
    import torch

    plain = _plain(model)
    inputs = {"input_ids": ids, "attention_mask": mask} | ({} if places is None else {"position_ids": places})
    if head_is_linear(plain):
        hidden = plain.get_decoder()(**inputs, use_cache=False).last_hidden_state
        logits: Tensor = plain.get_output_embeddings()(hidden[rows, positions])
    else:
        logits = plain(**inputs, use_cache=False).logits[rows, positions]
    return logits if logits.dtype == torch.float64 else logits.float()
