"""Client-level privacy on the server: by hand, against NumPy, limits, and which rules it works with."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_rounds import SHAPES, info, one, random_adapter, random_round, start, update

from oblivion.aggregation import rule_of
from oblivion.aggregation.rules import aggregators
from oblivion.aggregation.rules.fedavg import FedAvg
from oblivion.config import load_config
from oblivion.errors import ConfigError
from oblivion.privacy.client_noise import ClientPrivacy, client_privacy_of
from oblivion.privacy.noise import NoiseStream, derive_key
from oblivion.privacy.settings import check_privacy

MEAN_RULES = ["fedadagrad", "fedadam", "fedavg", "fedavgm", "fedprox", "fedyogi"]
SECRET, OTHER = bytes(range(32)), bytes(range(1, 33))
LIKE = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
QUIET = ClientPrivacy(noise_multiplier=0.0, clip_norm=1.0, asked=4)


class TestMean:
    def test_by_hand(self) -> None:
        # (3, 4) has norm 5 and is cut to (0.6, 0.8); (0, 0.5) stays. Their sum over m = 4 is (0.15, 0.325).
        updates = [update(0, one(3.0, 4.0), 1000), update(1, one(0.0, 0.5), 1)]
        mean = QUIET.mean(updates, one(0.0, 0.0), SECRET, info())
        np.testing.assert_allclose(mean.delta["w"], [0.15, 0.325], rtol=1e-6)

    def test_against_numpy(self) -> None:
        updates = random_round(np.random.default_rng(0), round=2)
        stage = ClientPrivacy(noise_multiplier=1.3, clip_norm=0.2, asked=7)
        stream = NoiseStream(derive_key(SECRET, "client-noise", 2))
        expected = {name: 1.3 * 0.2 * stream.gaussian(int(np.prod(SHAPES[name]))) for name in sorted(SHAPES)}
        for one_update in updates:
            norm = np.sqrt(sum((t.double().numpy() ** 2).sum() for t in one_update.delta.values()))
            for name in expected:
                expected[name] = expected[name] + min(1, 0.2 / norm) * one_update.delta[name].double().numpy().ravel()
        mean = stage.mean(updates, LIKE, SECRET, info(2))
        for name in expected:
            np.testing.assert_allclose(mean.delta[name].numpy().ravel(), expected[name] / 7, rtol=1e-5, atol=1e-8)
            assert mean.delta[name].dtype == torch.float32

    def test_without_noise_or_clipping_it_is_the_mean(self) -> None:
        updates = [dataclasses.replace(u, num_examples=5) for u in random_round(np.random.default_rng(1))]
        state = start(np.random.default_rng(2))
        stage = ClientPrivacy(noise_multiplier=0.0, clip_norm=1e9, asked=len(updates))
        plain, _ = FedAvg().step(updates, state, {}, info())
        private, _ = FedAvg().step([stage.mean(updates, LIKE, SECRET, info())], state, {}, info())
        for name in SHAPES:
            torch.testing.assert_close(private.adapter[name], plain.adapter[name], rtol=0, atol=1e-7)

    def test_noise_has_its_deviation(self) -> None:
        # A fixed secret: sigma C / m = 1.5 * 2 / 6 = 0.5 in every value, over 200 000 of them.
        like = {"w": torch.zeros(200_000)}
        stage = ClientPrivacy(noise_multiplier=1.5, clip_norm=2.0, asked=6)
        noise = stage.mean([], like, SECRET, info()).delta["w"].double()
        assert float(noise.std()) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(2 * 200_000))
        assert abs(float(noise.mean())) < 4 * 0.5 / np.sqrt(200_000)

    def test_secret_and_round_decide_the_noise(self) -> None:
        stage = ClientPrivacy(noise_multiplier=1.0, clip_norm=1.0, asked=2)
        first = stage.mean([], LIKE, SECRET, info(1)).delta
        again = stage.mean([], LIKE, SECRET, dataclasses.replace(info(1), branch="other", seed=9)).delta
        assert all(torch.equal(first[name], again[name]) for name in LIKE)
        for other in (stage.mean([], LIKE, OTHER, info(1)), stage.mean([], LIKE, SECRET, info(2))):
            assert not any(torch.equal(first[name], other.delta[name]) for name in LIKE)

    @settings(max_examples=30)
    @given(st.integers(0, 100), st.floats(0.01, 100), st.permutations(range(5)))
    def test_one_client_moves_it_by_no_more_than_the_bound(self, seed: int, scale: float, order: list[int]) -> None:
        generator = np.random.default_rng(seed)
        updates = [update(k, random_adapter(generator, scale)) for k in range(5)]
        stage = ClientPrivacy(noise_multiplier=1.0, clip_norm=0.7, asked=5)
        all_of_them = stage.mean([updates[k] for k in order], LIKE, SECRET, info()).delta
        in_order = stage.mean(updates, LIKE, SECRET, info()).delta
        assert all(torch.equal(all_of_them[name], in_order[name]) for name in LIKE)
        without = stage.mean(updates[1:], LIKE, SECRET, info()).delta
        moved = np.sqrt(sum(float((in_order[n] - without[n]).double().square().sum()) for n in LIKE))
        assert moved <= 0.7 / 5 * (1 + 1e-5)


class TestCheckPrivacy:
    def test_none_is_none(self) -> None:
        assert client_privacy_of(load_config(None, {"federation.aggregator": "krum"})) is None
        assert client_privacy_of(load_config(None, {"privacy.unit": "sample"})) is None

    def test_from_the_config(self) -> None:
        settings = {"privacy.unit": "client", "privacy.noise-multiplier": 2, "privacy.clip-norm": 0.5}
        stage = client_privacy_of(load_config(None, {**settings, "federation.clients-per-round": 3}))
        assert stage == ClientPrivacy(noise_multiplier=2, clip_norm=0.5, asked=3)

    @pytest.mark.parametrize("rule", sorted(aggregators.names()))
    def test_rules_of_the_mean_and_no_others(self, rule: str) -> None:
        parameters = {"strategy": "FedAvg"} if rule == "flower" else {}
        settings = {"federation.aggregator": rule, "federation.parameters": parameters}
        config = load_config(None, {"privacy.unit": "client", **settings})
        if rule in MEAN_RULES:
            check_privacy(config)
        else:
            with pytest.raises(ConfigError, match="not a function of the mean"):
                check_privacy(config)
        check_privacy(load_config(None, {"privacy.unit": "sample", **settings}))

    @pytest.mark.parametrize("rule", MEAN_RULES)
    def test_the_rules_see_the_mean_only(self, rule: str) -> None:
        """Unequal weights and more clients change nothing, as long as the clipped sum is the same."""
        aggregator = rule_of(load_config(None, {"federation.aggregator": rule}))
        state = start(np.random.default_rng(3))
        delta = random_adapter(np.random.default_rng(4), 0.01)
        half = {name: tensor / 2 for name, tensor in delta.items()}
        stage = ClientPrivacy(noise_multiplier=0.0, clip_norm=10.0, asked=1)
        results = []
        for updates in ([update(0, delta, 3)], [update(0, half, 1), update(1, half, 99)]):
            mean = stage.mean(updates, LIKE, SECRET, info())
            results.append(aggregator.step([mean], state, aggregator.init(state), info())[0].adapter)
        for name in SHAPES:
            torch.testing.assert_close(results[0][name], results[1][name], rtol=0, atol=1e-7)
            assert not torch.equal(results[0][name], state.adapter[name])

    @pytest.mark.parametrize("scheme", ["fedex", "flexlora", "flora"])
    def test_products_are_refused(self, scheme: str) -> None:
        with pytest.raises(ConfigError, match="choose one of fedit, ffa, rolora"):
            check_privacy(load_config(None, {"privacy.unit": "client", "lora.scheme": scheme}))

    def test_dropout_and_ranks_are_refused_for_samples(self) -> None:
        with pytest.raises(ConfigError, match="dropout = 0"):
            check_privacy(load_config(None, {"privacy.unit": "sample", "lora.dropout": 0.1}))
        ranks = {"privacy.unit": "sample", "lora.scheme": "flora", "federation.ranks": {"client-1": 4}}
        with pytest.raises(ConfigError, match="ranks"):
            check_privacy(load_config(None, ranks))
