"""Noise from a secret: the same for one key, another for another, and of the right distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from oblivion.errors import InputError
from oblivion.privacy.noise import NoiseStream, derive_key

SECRET = bytes(range(32))


class TestDeriveKey:
    def test_every_part_counts(self) -> None:
        keys = {
            derive_key(secret, purpose, round, client)
            for secret in (SECRET, SECRET[::-1])
            for purpose in ("a", "b")
            for round in (0, 1)
            for client in ("", "client-1")
        }
        assert len(keys) == 16
        assert all(len(key) == 32 for key in keys)

    def test_a_short_secret_is_refused(self) -> None:
        with pytest.raises(InputError, match="at least 32"):
            derive_key(b"secret", "noise")


class TestNoiseStream:
    def test_uniform_is_the_key_stream(self) -> None:
        key = derive_key(SECRET, "x")
        stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(24))
        expected = [(int.from_bytes(stream[i : i + 8], "little") >> 11) / 2**53 for i in (0, 8, 16)]
        assert NoiseStream(key).uniform(3).tolist() == expected

    def test_gaussian_by_box_and_muller(self) -> None:
        key = derive_key(SECRET, "x")
        u, v = NoiseStream(key).uniform(2)
        radius = np.sqrt(-2 * np.log(1 - u))
        expected = [radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)]
        np.testing.assert_allclose(NoiseStream(key).gaussian(2), expected, rtol=1e-12)

    def test_distribution(self) -> None:
        # A fixed key: this either holds or it does not.
        values = NoiseStream(derive_key(SECRET, "statistics")).gaussian(200_001)
        assert values.shape == (200_001,)
        assert stats.kstest(values, "norm").pvalue > 0.01
        assert abs(values.mean()) < 4 / np.sqrt(values.size)
        assert abs(values.std() - 1) < 4 / np.sqrt(2 * values.size)
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 4 / np.sqrt(values.size)

    def test_tensors_in_name_order(self) -> None:
        like = {"b": torch.zeros(2, 3), "a": torch.zeros(5)}
        key = derive_key(SECRET, "x")
        drawn, stream = NoiseStream(key).gaussian_like(like, 2.5), NoiseStream(key)
        assert list(drawn) == ["a", "b"]
        np.testing.assert_array_equal(drawn["a"].numpy(), 2.5 * stream.gaussian(5))
        np.testing.assert_array_equal(drawn["b"].numpy().ravel(), 2.5 * stream.gaussian(6))
        assert drawn["a"].dtype == torch.float64

    @given(st.binary(min_size=32, max_size=32), st.integers(1, 50))
    def test_same_key_same_values(self, secret: bytes, count: int) -> None:
        key = derive_key(secret, "x")
        one, other = NoiseStream(key).gaussian(count), NoiseStream(key).gaussian(count)
        assert one.tobytes() == other.tobytes()
        assert np.isfinite(one).all()
        assert one.tobytes() != NoiseStream(derive_key(secret, "y")).gaussian(count).tobytes()
