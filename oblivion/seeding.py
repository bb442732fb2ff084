"""Randomness as a pure function of (root seed, purpose, round, client).

No module of this project touches a global random generator. Every generator is made from a seed that
`derive_seed` computes, so that a round can be repeated alone, in any process, in any order.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive_seed(root: int, purpose: str, round: int = 0, client: str = "") -> int:
    """Derive a 63-bit seed.

    Parameters
    ----------
    root : int
        The seed of the run.
    purpose : str
        What the randomness is for, such as ``"batches"``.
    round : int, default 0
        The round, counted from 1; 0 where there is none.
    client : str, default ""
        The client id; empty where there is none.

    Returns
    -------
    int
        The first 63 bits of SHA-256 over the canonical JSON of the four values.
    """
    message = json.dumps([root, purpose, round, client], separators=(",", ":")).encode()
    return int.from_bytes(hashlib.sha256(message).digest()[:8], "big") >> 1


def numpy_generator(root: int, purpose: str, round: int = 0, client: str = "") -> np.random.Generator:
    """Make a NumPy generator from the derived seed (PCG64)."""
    import numpy as np

    return np.random.Generator(np.random.PCG64(derive_seed(root, purpose, round, client)))


def torch_generator(root: int, purpose: str, round: int = 0, client: str = "") -> torch.Generator:
    """Make a CPU torch generator from the derived seed."""
    import torch

    generator = torch.Generator()
    generator.manual_seed(derive_seed(root, purpose, round, client))
    return generator
