"""Privacy noise: Gaussian values and uniform draws from a secret key, never from a run's seed.

Whoever can compute the noise can subtract it, so it comes from 32 secret bytes (`oblivion.ledger.keys`) through
HMAC-SHA256 and ChaCha20 (RFC 8439): the same key gives the same values, and nothing short of the key does. Gaussian
values are made by the transform of Box and Muller (1958) in fp64.

Deviation from the theory, as everywhere where noise is a floating-point number: the mechanism is the real-valued
Gaussian's only up to rounding, which an attacker who sees all bits can in principle use (Mironov, 2012).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from oblivion.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

KEY_BYTES = 32
_BITS = 53
"""Random bits of each number between 0 and 1, as many as fp64 holds."""


def derive_key(secret: bytes, purpose: str, round: int = 0, client: str = "") -> bytes:
    """Derive a key of 32 bytes for one purpose; the secret cannot be computed from it.

    Parameters
    ----------
    secret : bytes
        At least 32 bytes.
    purpose, round, client
        The use that the key is made for.

    Raises
    ------
    InputError
        If the secret is too short.
    """
    if len(secret) < KEY_BYTES:
        raise InputError(f"a secret of {len(secret)} bytes; privacy noise needs at least {KEY_BYTES}")
    message = json.dumps([purpose, round, client], separators=(",", ":")).encode()
    return hmac.new(secret, message, hashlib.sha256).digest()


class NoiseStream:
    """Random values from a key, one after the other; a key serves one stream only.

    Parameters
    ----------
    key : bytes
        32 bytes, as `derive_key` makes them.
    """

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

        self._stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    def uniform(self, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return `count` values, uniform in [0, 1), as multiples of 2^-53."""
        import numpy as np

        bits = np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")
        return (bits >> np.uint64(64 - _BITS)).astype(np.float64) * 2.0**-_BITS

    def gaussian(self, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return `count` Gaussian values of mean 0 and standard deviation 1."""
        import numpy as np

        pairs = -(-count // 2)
        drawn = self.uniform(2 * pairs)
        radius = np.sqrt(-2.0 * np.log1p(-drawn[:pairs]))
        angle = 2.0 * np.pi * drawn[pairs:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def gaussian_like(self, tensors: Mapping[str, Tensor], deviation: float) -> dict[str, Tensor]:
        """Draw Gaussian noise for named tensors, in name order.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            Tensors whose shapes the noise copies.
        deviation : float
            The standard deviation.

        Returns
        -------
        dict of str to Tensor
            The noise in fp64, on the CPU, in name order.
        """
        import torch

        return {
            name: torch.from_numpy(deviation * self.gaussian(tensors[name].numel())).view(tensors[name].shape)
            for name in sorted(tensors)
        }
