"""The Merkle tree hash of a log, with its proofs of inclusion and of consistency.

B. Laurie, A. Langley, E. Kasper, "Certificate Transparency", RFC 6962, 2013: the tree hash MTH (section 2.1), audit
paths PATH (2.1.1) and consistency proofs PROOF and SUBPROOF (2.1.2). RFC 6962 says what a proof is but not how one is
checked; the two verifiers follow RFC 9162 (2021), sections 2.1.3.2 and 2.1.4.2, which has the same tree and proofs.

Deviations: the hash is SHA-256 and nothing else. PROOF is defined for 0 < m < n; here m = 0 and m = n have the empty
proof, because a log may be compared with itself and with its beginning. Sizes stay below 2**64, as in section 3.5.

A proof binds a leaf or an older root to a root, not to the tree's size: sizes whose paths have the same shape (5 to 8,
for leaf 0) pass with one another's root. What binds size to root is the signed checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_HASH_SIZE = 32
_EMPTY_ROOT = hashlib.sha256(b"").digest()
_SIZE_LIMIT = 2**64


def leaf_hash(entry: bytes) -> bytes:
    """Hash one entry of the log.

    Parameters
    ----------
    entry : bytes
        The entry, of any length.

    Returns
    -------
    bytes
        SHA-256(0x00 || entry), 32 bytes.
    """
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees into the one above them.

    Parameters
    ----------
    left, right : bytes
        The subtrees' hashes, 32 bytes each.

    Returns
    -------
    bytes
        SHA-256(0x01 || left || right), 32 bytes; the other prefix keeps a node from passing as an entry.
    """
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """A tree that grows and keeps only what later roots need: the hashes of its perfect subtrees, O(log n) of them.

    Attributes
    ----------
    size : int
        How many leaves were appended.
    """

    def __init__(self) -> None:
        self.size = 0
        self._subtrees: list[bytes] = []  # left to right: one for each bit that is set in size, the highest first

    def append(self, leaf: bytes) -> None:
        """Add a leaf at the right.

        Parameters
        ----------
        leaf : bytes
            The leaf's hash, 32 bytes.

        Raises
        ------
        ValueError
            If it is not 32 bytes long, for instance an entry that was not hashed.
        """
        if len(leaf) != _HASH_SIZE:
            raise ValueError(f"a leaf is a hash of {_HASH_SIZE} bytes, not {len(leaf)}; pass leaf_hash(entry)")
        carry, full = leaf, self.size
        while full & 1:
            carry = node_hash(self._subtrees.pop(), carry)
            full >>= 1
        self._subtrees.append(carry)
        self.size += 1

    def root(self) -> bytes:
        """Return the root of the tree so far.

        Returns
        -------
        bytes
            MTH of the leaves, 32 bytes; of no leaves, SHA-256 of the empty string.
        """
        if not self._subtrees:
            return _EMPTY_ROOT
        *others, root = self._subtrees
        for subtree in reversed(others):
            root = node_hash(subtree, root)
        return root


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root of a tree.

    Parameters
    ----------
    leaves : sequence of bytes
        Leaf hashes, 32 bytes each.

    Returns
    -------
    bytes
        MTH(D[n]) of section 2.1, 32 bytes.

    Raises
    ------
    ValueError
        If a leaf is not 32 bytes long.
    """
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


def inclusion_proof(leaves: Sequence[bytes], index: int, size: int) -> list[bytes]:
    """Prove that a leaf is in the tree of the first `size` leaves.

    Parameters
    ----------
    leaves : sequence of bytes
        Leaf hashes, at least `size` of them.
    index : int
        Which leaf, from 0.
    size : int
        The tree's size.

    Returns
    -------
    list of bytes
        PATH(index, D[size]) of section 2.1.1, the leaf's sibling first.

    Raises
    ------
    ValueError
        If the log has fewer than `size` leaves, or the tree no leaf `index`.
    """
    _check_size(leaves, size)
    if not 0 <= index < size:
        raise ValueError(f"index is {index}; a tree of {size} leaves has those from 0 to {size - 1}")
    proof: list[bytes] = []
    low, high = 0, size
    while high - low > 1:
        middle = _split(low, high)
        if index < middle:
            proof.append(tree_root(leaves[middle:high]))
            high = middle
        else:
            proof.append(tree_root(leaves[low:middle]))
            low = middle
    return proof[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Check a proof of inclusion.

    Parameters
    ----------
    leaf : bytes
        The leaf's hash.
    index, size : int
        Which leaf, of a tree of how many.
    proof : list or tuple of bytes
        What `inclusion_proof` returned.
    root : bytes
        The root of the tree, from a checkpoint of that size.

    Returns
    -------
    bool
        Whether the proof leads from the leaf to the root; False, never an error, for anything malformed.
    """
    if not (_is_size(index) and _is_size(size) and index < size and _are_hashes([leaf, root]) and _are_hashes(proof)):
        return False
    climbed = _climb(leaf, index, size - 1, proof)
    return climbed is not None and climbed[1] == root


def consistency_proof(leaves: Sequence[bytes], old: int, new: int) -> list[bytes]:
    """Prove that the tree of the first `new` leaves continues the one of the first `old`.

    Parameters
    ----------
    leaves : sequence of bytes
        Leaf hashes, at least `new` of them.
    old, new : int
        The trees' sizes, `old` at most `new`.

    Returns
    -------
    list of bytes
        PROOF(old, D[new]) of section 2.1.2; empty if `old` is 0 or `new`.

    Raises
    ------
    ValueError
        If the log has fewer than `new` leaves, or `old` is not from 0 to `new`.
    """
    _check_size(leaves, new)
    if not 0 <= old <= new:
        raise ValueError(f"old is {old}; a tree of {new} leaves continues those of 0 to {new} leaves")
    if old == 0:
        return []
    proof: list[bytes] = []
    low, high = 0, new
    while high != old:
        middle = _split(low, high)
        if old <= middle:
            proof.append(tree_root(leaves[middle:high]))
            high = middle
        else:
            proof.append(tree_root(leaves[low:middle]))
            low = middle
    if low > 0:  # otherwise the subtree is the whole old tree, whose root the verifier has
        proof.append(tree_root(leaves[low:high]))
    return proof[::-1]


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Check a proof of consistency.

    Parameters
    ----------
    old, new : int
        The trees' sizes.
    old_root, new_root : bytes
        Their roots, from checkpoints of those sizes.
    proof : list or tuple of bytes
        What `consistency_proof` returned.

    Returns
    -------
    bool
        Whether the proof leads to both roots; False, never an error, for anything malformed. Every tree continues the
        empty one, so for ``old = 0`` nothing can be said about `new_root`.
    """
    if not (_is_size(old) and _is_size(new) and old <= new):
        return False
    if not (_are_hashes([old_root, new_root]) and _are_hashes(proof)):
        return False
    if old == new:
        return not proof and old_root == new_root and (old > 0 or old_root == _EMPTY_ROOT)
    if old == 0:
        return not proof and old_root == _EMPTY_ROOT
    # The climb starts at the largest perfect subtree that ends where the old tree ends. If that is all of the old
    # tree, the proof leaves it out.
    level = (old & -old).bit_length() - 1
    path = [old_root, *proof] if old == 1 << level else list(proof)
    return bool(path) and _climb(path[0], (old - 1) >> level, (new - 1) >> level, path[1:]) == (old_root, new_root)


def _climb(seed: bytes, node: int, last: int, path: Sequence[bytes]) -> tuple[bytes, bytes] | None:
    """Climb from the `node`-th subtree of a level whose last is `last`; None if the path's length does not fit.

    Returns the root of the tree that ends at that subtree, made of left siblings only, and of the whole tree.
    """
    until = whole = seed
    for sibling in path:
        if last == 0:
            return None
        if node & 1 or node == last:
            until, whole = node_hash(sibling, until), node_hash(sibling, whole)
            while node and not node & 1:  # the last subtree has no sibling on these levels
                node, last = node >> 1, last >> 1
        else:
            whole = node_hash(whole, sibling)
        node, last = node >> 1, last >> 1
    return (until, whole) if last == 0 else None


def _split(low: int, high: int) -> int:
    """Where the leaves from `low` to `high` part: after the largest power of two below their number."""
    return low + (1 << ((high - low - 1).bit_length() - 1))


def _check_size(leaves: Sequence[bytes], size: int) -> None:
    if not 0 <= size <= len(leaves):
        raise ValueError(f"the tree's size is {size}; the log has {len(leaves)} leaves")


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < _SIZE_LIMIT  # True and False, from JSON, are no sizes


def _are_hashes(values: object) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(v, bytes) and len(v) == _HASH_SIZE for v in values)
