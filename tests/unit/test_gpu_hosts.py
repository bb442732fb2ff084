"""Hosts on a machine with GPUs: one for each, and a place for every host that is asked for."""

from __future__ import annotations

import os

import pytest
import torch

from oblivion.config import RunConfig, load_config
from server.prepare import check
from simulations.engines.ray import gpu_share


@pytest.mark.parametrize("gpus", range(1, 9))
def test_every_host_has_a_place(gpus: int) -> None:
    for hosts in range(1, 101):
        share = gpu_share(hosts, gpus)
        assert 0 < share <= 1
        assert gpus * int(1 / share) >= hosts, "no host spans two GPUs, so each GPU takes whole shares only"
        assert int(gpus / share) >= hosts, "and Flower starts as many as this says"


def test_no_gpu_no_share() -> None:
    assert gpu_share(3, 0) == 0


@pytest.mark.parametrize(("gpus", "cores", "hosts"), [(0, 4, 4), (0, 64, 8), (1, 64, 1), (2, 64, 2), (16, 4, 8)])
def test_automatic_number_of_hosts(monkeypatch: pytest.MonkeyPatch, gpus: int, cores: int, hosts: int) -> None:
    # The built-in data has eight clients.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    config: RunConfig
    config, data = check(load_config(None))
    assert len(data.clients) == 8 and config.simulation.hosts == hosts
