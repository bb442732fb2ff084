"""The Merkle tree under random logs: every proof holds, and none holds once anything about it is changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from oblivion.ledger.merkle import (
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    tree_root,
    verify_consistency,
    verify_inclusion,
)

MOST = 80
salts = st.binary(max_size=8)
logs = st.lists(st.binary(max_size=40), max_size=MOST)
hashes = st.binary(min_size=32, max_size=32)
sizes = st.integers(1, MOST)


def different(salt: bytes) -> list[bytes]:
    """Leaves of which no two are equal: among equal ones, a proof for one is a true proof for another."""
    return [leaf_hash(salt + bytes([k])) for k in range(MOST)]


def split(n: int) -> int:
    return max(2**e for e in range(n) if 2**e < n)


def recursive_root(entries: list[bytes]) -> bytes:
    """RFC 6962, section 2.1."""
    if len(entries) < 2:
        return hashlib.sha256(b"".join([b"\x00" + entry for entry in entries])).digest()
    k = split(len(entries))
    return hashlib.sha256(b"\x01" + recursive_root(entries[:k]) + recursive_root(entries[k:])).digest()


def inclusion_shape(index: int, size: int) -> str:
    """On which side the siblings of a leaf stand, from the leaf up: RFC 6962, section 2.1.1, without the hashes."""
    if size == 1:
        return ""
    k = split(size)
    return inclusion_shape(index, k) + "R" if index < k else inclusion_shape(index - k, size - k) + "L"


def consistency_shape(old: int, new: int, whole: bool = True) -> str:
    """The same for section 2.1.2; it begins with S where the proof begins with a subtree of its own."""
    if old == new:
        return "" if whole else "S"
    k = split(new)
    if old <= k:
        return consistency_shape(old, k, whole) + "R"
    return consistency_shape(old - k, new - k, False) + "L"


def changed(proof: list[bytes], other: bytes, data: st.DataObject) -> Iterator[list[bytes]]:
    """The proof with a byte flipped, an element dropped, added or moved."""
    for k, element in enumerate(proof):
        byte, mask = data.draw(st.integers(0, 31)), data.draw(st.integers(1, 255))
        flipped = element[:byte] + bytes([element[byte] ^ mask]) + element[byte + 1 :]
        yield [*proof[:k], flipped, *proof[k + 1 :]]
        yield proof[:k] + proof[k + 1 :]
        for m in range(k):
            swapped = list(proof)
            swapped[k], swapped[m] = swapped[m], swapped[k]
            yield swapped
    for k in range(len(proof) + 1):
        yield [*proof[:k], other, *proof[k:]]
        yield [*proof[:k], *proof[k - 1 :]] if k else [*proof, *(proof or [other])]


@settings(max_examples=40)
@given(logs)
def test_the_frontier_has_the_recursive_root_at_every_size(entries: list[bytes]) -> None:
    frontier = Frontier()
    for size, entry in enumerate(entries):
        assert (frontier.size, frontier.root()) == (size, recursive_root(entries[:size]))
        frontier.append(leaf_hash(entry))
    assert frontier.root() == recursive_root(entries) == tree_root([leaf_hash(entry) for entry in entries])


@settings(max_examples=60)
@given(logs.filter(bool), st.data())
def test_every_inclusion_proof_holds(entries: list[bytes], data: st.DataObject) -> None:
    leaves = [leaf_hash(entry) for entry in entries]
    size = data.draw(st.integers(1, len(leaves)))
    root = recursive_root(entries[:size])
    for index in range(size):
        proof = inclusion_proof(leaves, index, size)
        assert verify_inclusion(leaves[index], index, size, proof, root)
        assert verify_inclusion(leaves[index], index, size, tuple(proof), root)


@settings(max_examples=60)
@given(logs, st.data())
def test_every_consistency_proof_holds(entries: list[bytes], data: st.DataObject) -> None:
    leaves = [leaf_hash(entry) for entry in entries]
    new = data.draw(st.integers(0, len(leaves)))
    root = recursive_root(entries[:new])
    for old in range(new + 1):
        proof = consistency_proof(leaves, old, new)
        assert verify_consistency(old, new, recursive_root(entries[:old]), root, proof)


@settings(max_examples=150)
@given(salts, sizes, hashes, st.data())
def test_a_changed_inclusion_proof_does_not_hold(salt: bytes, size: int, other: bytes, data: st.DataObject) -> None:
    leaves, index = different(salt), data.draw(st.integers(0, size - 1))
    root, proof = tree_root(leaves[:size]), inclusion_proof(leaves, index, size)
    for wrong in changed(proof, other, data):
        assert not verify_inclusion(leaves[index], index, size, wrong, root)
    assert not verify_inclusion(other, index, size, proof, root)
    assert not verify_inclusion(leaves[index], index, size, proof, other)


@settings(max_examples=100)
@given(salts, sizes, st.data())
def test_an_inclusion_proof_holds_for_its_index_and_size_only(salt: bytes, size: int, data: st.DataObject) -> None:
    leaves, index = different(salt), data.draw(st.integers(0, size - 1))
    root, proof = tree_root(leaves[:size]), inclusion_proof(leaves, index, size)
    for wrong in set(range(-1, MOST + 1)) - {index}:
        assert not verify_inclusion(leaves[index], wrong, size, proof, root)
        if 0 <= wrong < size:
            assert not verify_inclusion(leaves[wrong], index, size, proof, root)
    for wrong in set(range(index + 1, MOST + 1)) - {size}:
        assert not verify_inclusion(leaves[index], index, wrong, proof, tree_root(leaves[:wrong]))
        # With a root that is not of that size, only the path's shape can tell; a checkpoint binds root to size.
        same = inclusion_shape(index, wrong) == inclusion_shape(index, size)
        assert verify_inclusion(leaves[index], index, wrong, proof, root) == same
    assert not verify_inclusion(leaves[index], index, index, proof, root)


@settings(max_examples=150)
@given(salts, sizes, hashes, st.data())
def test_a_changed_consistency_proof_does_not_hold(salt: bytes, new: int, other: bytes, data: st.DataObject) -> None:
    leaves, old = different(salt), data.draw(st.integers(0, new))
    old_root, new_root, proof = tree_root(leaves[:old]), tree_root(leaves[:new]), consistency_proof(leaves, old, new)
    for wrong in changed(proof, other, data):
        assert not verify_consistency(old, new, old_root, new_root, wrong)
    assert not verify_consistency(old, new, other, new_root, proof)
    assert old == 0 or not verify_consistency(old, new, old_root, other, proof)


@settings(max_examples=100)
@given(salts, sizes, st.data())
def test_a_consistency_proof_holds_for_its_sizes_only(salt: bytes, new: int, data: st.DataObject) -> None:
    leaves, old = different(salt), data.draw(st.integers(1, new))
    old_root, new_root, proof = tree_root(leaves[:old]), tree_root(leaves[:new]), consistency_proof(leaves, old, new)
    for wrong in set(range(-1, MOST + 1)) - {old}:
        assert not verify_consistency(wrong, new, old_root, new_root, proof)
        if 0 < wrong < new:
            assert not verify_consistency(wrong, new, tree_root(leaves[:wrong]), new_root, proof)
    for wrong in set(range(old, MOST + 1)) - {new}:
        assert not verify_consistency(old, wrong, old_root, tree_root(leaves[:wrong]), proof)
        same = consistency_shape(old, wrong) == consistency_shape(old, new)  # as for inclusion
        assert verify_consistency(old, wrong, old_root, new_root, proof) == same
    assert old == new or not verify_consistency(new, old, new_root, old_root, proof)
