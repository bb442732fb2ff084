"""The Merkle tree: the vectors of Certificate Transparency, the RFC's own example, its definition, malformed proofs."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from oblivion.ledger.merkle import (
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    tree_root,
    verify_consistency,
    verify_inclusion,
)

# The tree that Certificate Transparency implementations share as their test: github.com/google/certificate-transparency
# (cpp/merkletree/merkle_tree_test.cc) and github.com/transparency-dev/merkle (testonly).
ENTRIES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAF_0 = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
LEAF_1 = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
LEAF_4 = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
NODES_0_1 = "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
NODES_2_3 = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
NODES_4_5 = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
NODES_6_7 = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
NODES_0_3 = "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"
NODES_4_7 = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
PATHS = {  # (index, size)
    (0, 1): [],
    (0, 8): [LEAF_1, NODES_2_3, NODES_4_7],
    (5, 8): [LEAF_4, NODES_6_7, NODES_0_3],
    (2, 3): [NODES_0_1],
    (1, 5): [LEAF_0, NODES_2_3, LEAF_4],
}
PROOFS = {  # (old, new)
    (1, 1): [],
    (1, 8): [LEAF_1, NODES_2_3, NODES_4_7],
    (6, 8): [NODES_4_5, NODES_6_7, NODES_0_3],
    (2, 5): [NODES_2_3, LEAF_4],
}
ENTRY_BYTES = [bytes.fromhex(entry) for entry in ENTRIES]
LEAVES = [leaf_hash(entry) for entry in ENTRY_BYTES]
ROOT_BYTES = [bytes.fromhex(root) for root in ROOTS]


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


# --- RFC 6962, sections 2.1 to 2.1.2, word for word; D holds entries, not hashes ---


def split(n: int) -> int:
    """The k of the RFC: the largest power of two smaller than n."""
    return max(2**e for e in range(n) if 2**e < n)


def MTH(D: list[bytes]) -> bytes:
    n = len(D)
    if n == 0:
        return digest(b"")
    if n == 1:
        return digest(b"\x00" + D[0])
    k = split(n)
    return digest(b"\x01" + MTH(D[:k]) + MTH(D[k:n]))


def PATH(m: int, D: list[bytes]) -> list[bytes]:
    n = len(D)
    if n == 1:
        return []
    k = split(n)
    return [*PATH(m, D[:k]), MTH(D[k:n])] if m < k else [*PATH(m - k, D[k:n]), MTH(D[:k])]


def SUBPROOF(m: int, D: list[bytes], b: bool) -> list[bytes]:
    n = len(D)
    if m == n:
        return [] if b else [MTH(D)]
    k = split(n)
    if m <= k:
        return [*SUBPROOF(m, D[:k], b), MTH(D[k:n])]
    return [*SUBPROOF(m - k, D[k:n], False), MTH(D[:k])]


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_certificate_transparency(size: int) -> None:
    frontier = Frontier()
    for leaf in LEAVES[:size]:
        frontier.append(leaf)
    assert frontier.size == size
    assert frontier.root().hex() == tree_root(LEAVES[:size]).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), PATHS)
def test_inclusion_paths_are_those_of_certificate_transparency(index: int, size: int) -> None:
    proof = inclusion_proof(LEAVES, index, size)
    assert [node.hex() for node in proof] == PATHS[index, size]
    assert verify_inclusion(LEAVES[index], index, size, proof, ROOT_BYTES[size])


@pytest.mark.parametrize(("old", "new"), PROOFS)
def test_consistency_paths_are_those_of_certificate_transparency(old: int, new: int) -> None:
    proof = consistency_proof(LEAVES, old, new)
    assert [node.hex() for node in proof] == PROOFS[old, new]
    assert verify_consistency(old, new, ROOT_BYTES[old], ROOT_BYTES[new], proof)


def test_the_example_of_the_rfc() -> None:
    """Section 2.1.3: seven entries, named as in its figure."""
    entries = [f"d{k}".encode() for k in range(7)]
    leaves = a, b, c, d, e, f, j = [digest(b"\x00" + entry) for entry in entries]
    g, h, i = digest(b"\x01" + a + b), digest(b"\x01" + c + d), digest(b"\x01" + e + f)
    k, l = digest(b"\x01" + g + h), digest(b"\x01" + i + j)  # noqa: E741
    assert [leaf_hash(entry) for entry in entries] == leaves
    assert tree_root(leaves) == digest(b"\x01" + k + l)
    assert inclusion_proof(leaves, 0, 7) == [b, h, l]
    assert inclusion_proof(leaves, 3, 7) == [c, g, l]
    assert inclusion_proof(leaves, 4, 7) == [f, j, k]
    assert inclusion_proof(leaves, 6, 7) == [i, k]
    assert consistency_proof(leaves, 3, 7) == [c, d, g, l]
    assert consistency_proof(leaves, 4, 7) == [l]
    assert consistency_proof(leaves, 6, 7) == [i, j, k]


def test_three_leaves_by_hand() -> None:
    a, b, c = (digest(b"\x00" + entry) for entry in (b"a", b"b", b"c"))
    ab = digest(b"\x01" + a + b)
    root = digest(b"\x01" + ab + c)
    assert tree_root([a, b, c]) == root
    assert inclusion_proof([a, b, c], 2, 3) == [ab] and verify_inclusion(c, 2, 3, [ab], root)
    assert inclusion_proof([a, b, c], 1, 3) == [a, c] and verify_inclusion(b, 1, 3, [a, c], root)
    assert consistency_proof([a, b, c], 1, 3) == [b, c] and verify_consistency(1, 3, a, root, [b, c])
    assert consistency_proof([a, b, c], 2, 3) == [c] and verify_consistency(2, 3, ab, root, [c])


def test_everything_is_as_the_rfc_defines_it_up_to_33_entries() -> None:
    entries = [bytes([k]) * k for k in range(33)]
    leaves = [leaf_hash(entry) for entry in entries]
    for n in range(len(entries) + 1):
        D = entries[:n]
        assert tree_root(leaves[:n]) == MTH(D)
        for m in range(n):
            assert inclusion_proof(leaves, m, n) == PATH(m, D)
        for m in range(1, n + 1):
            assert consistency_proof(leaves, m, n) == SUBPROOF(m, D, True)


def test_a_hundred_thousand_leaves_level_by_level() -> None:
    nodes = leaves = [leaf_hash(k.to_bytes(4, "big")) for k in range(100_000)]
    while len(nodes) > 1:
        pairs = [node_hash(*pair) for pair in zip(nodes[::2], nodes[1::2], strict=False)]
        nodes = pairs + nodes[len(pairs) * 2 :]  # the odd one out goes up as it is
    assert tree_root(leaves) == nodes[0]
    proof = inclusion_proof(leaves, 99_999, 100_000)
    assert verify_inclusion(leaves[-1], 99_999, 100_000, proof, nodes[0])


def test_a_node_does_not_pass_as_an_entry() -> None:
    assert leaf_hash(LEAVES[0] + LEAVES[1]) != node_hash(LEAVES[0], LEAVES[1])
    assert node_hash(LEAVES[0], LEAVES[1]) != node_hash(LEAVES[1], LEAVES[0])


def test_the_empty_tree_is_the_beginning_of_every_tree() -> None:
    empty = Frontier().root()
    assert consistency_proof(LEAVES, 0, 8) == consistency_proof([], 0, 0) == []
    assert verify_consistency(0, 8, empty, ROOT_BYTES[8], []) and verify_consistency(0, 0, empty, empty, [])
    assert not verify_consistency(0, 8, ROOT_BYTES[1], ROOT_BYTES[8], [])
    assert not verify_consistency(0, 8, empty, ROOT_BYTES[8], [LEAVES[0]])
    assert not verify_consistency(0, 0, empty, ROOT_BYTES[1], [])
    assert not verify_consistency(0, 0, ROOT_BYTES[1], ROOT_BYTES[1], [])


def test_a_tree_is_consistent_with_itself_only_as_it_is() -> None:
    assert verify_consistency(5, 5, ROOT_BYTES[5], ROOT_BYTES[5], [])
    assert not verify_consistency(5, 5, ROOT_BYTES[5], ROOT_BYTES[6], [])
    assert not verify_consistency(5, 5, ROOT_BYTES[5], ROOT_BYTES[5], [LEAVES[0]])


def test_a_rewritten_or_shortened_log_has_no_proof() -> None:
    rewritten = [*LEAVES[:2], leaf_hash(b"another"), *LEAVES[3:]]
    for proof in (consistency_proof(rewritten, 5, 8), consistency_proof(LEAVES, 5, 8)):
        assert not verify_consistency(5, 8, ROOT_BYTES[5], tree_root(rewritten), proof)
    assert not verify_consistency(8, 5, ROOT_BYTES[8], ROOT_BYTES[5], consistency_proof(LEAVES, 5, 8))


@pytest.mark.parametrize(("index", "size"), [(8, 8), (-1, 8), (0, 0), (0, 9), (0, -1)])
def test_there_is_no_inclusion_proof_out_of_range(index: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"index is -?\d; a tree of \d leaves|size is -?\d; the log has 8 leaves"):
        inclusion_proof(LEAVES, index, size)


@pytest.mark.parametrize(("old", "new"), [(6, 5), (-1, 5), (0, 9), (9, 9), (0, -1)])
def test_there_is_no_consistency_proof_out_of_range(old: int, new: int) -> None:
    with pytest.raises(ValueError, match=r"old is -?\d; a tree of 5 leaves|size is -?\d; the log has 8 leaves"):
        consistency_proof(LEAVES, old, new)


def test_a_leaf_is_a_hash() -> None:
    frontier = Frontier()
    with pytest.raises(ValueError, match=r"32 bytes, not 5; pass leaf_hash"):
        frontier.append(b"entry")
    assert frontier.size == 0 and frontier.root() == ROOT_BYTES[0]


def kind(bad: Any) -> str:
    """A name that is the same in every process, which `repr` of an object is not."""
    return type(bad).__name__


MALFORMED: list[Any] = [None, "", b"", b"x" * 31, b"x" * 33, "x" * 32, 3, 2.0, True, [], {}, object()]
NO_SIZES: list[Any] = [None, "5", 5.0, True, -1, 2**64, 10**5000, b"", []]
NO_PROOFS: list[Any] = [None, 1, b"x" * 96, "x", {}, iter(()), [None], [b""], ["x" * 32], [b"x" * 31], [[]], [1]]


@pytest.mark.parametrize("bad", MALFORMED, ids=kind)
def test_what_is_no_hash_is_refused(bad: Any) -> None:
    inclusion, consistency = inclusion_proof(LEAVES, 1, 5), consistency_proof(LEAVES, 2, 5)
    assert not verify_inclusion(bad, 1, 5, inclusion, ROOT_BYTES[5])
    assert not verify_inclusion(LEAVES[1], 1, 5, inclusion, bad)
    assert not verify_consistency(2, 5, bad, ROOT_BYTES[5], consistency)
    assert not verify_consistency(2, 5, ROOT_BYTES[2], bad, consistency)
    assert not verify_consistency(5, 5, bad, bad, [])
    assert not verify_inclusion(LEAVES[1], 1, 5, [*inclusion[:2], bad], ROOT_BYTES[5])
    assert not verify_consistency(2, 5, ROOT_BYTES[2], ROOT_BYTES[5], [bad, *consistency[1:]])


@pytest.mark.parametrize("bad", NO_SIZES, ids=kind)
def test_what_is_no_size_is_refused(bad: Any) -> None:
    inclusion, consistency = inclusion_proof(LEAVES, 1, 5), consistency_proof(LEAVES, 1, 5)
    assert not verify_inclusion(LEAVES[1], bad, 5, inclusion, ROOT_BYTES[5])
    assert not verify_inclusion(LEAVES[1], 1, bad, inclusion, ROOT_BYTES[5])
    assert not verify_consistency(bad, 5, ROOT_BYTES[1], ROOT_BYTES[5], consistency)
    assert not verify_consistency(1, bad, ROOT_BYTES[1], ROOT_BYTES[5], consistency)
    assert not verify_consistency(bad, bad, ROOT_BYTES[5], ROOT_BYTES[5], [])


@pytest.mark.parametrize("bad", NO_PROOFS, ids=kind)
def test_what_is_no_proof_is_refused(bad: Any) -> None:
    assert not verify_inclusion(LEAVES[1], 1, 5, bad, ROOT_BYTES[5])
    assert not verify_inclusion(LEAVES[0], 0, 1, bad, ROOT_BYTES[1])
    for old, new in ((0, 5), (2, 5), (3, 5), (5, 5)):
        assert not verify_consistency(old, new, ROOT_BYTES[old], ROOT_BYTES[new], bad)


def test_an_empty_proof_shows_nothing_about_larger_trees() -> None:
    assert not verify_inclusion(ROOT_BYTES[5], 0, 5, [], ROOT_BYTES[5])
    for old in range(1, 5):
        assert not verify_consistency(old, 5, ROOT_BYTES[old], ROOT_BYTES[5], [])
        assert not verify_consistency(old, 5, ROOT_BYTES[5], ROOT_BYTES[5], [])
