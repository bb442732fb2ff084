"""A part of another package that lacks something is refused before anything runs, with its name and what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from outside import Install
from outside import install as install

from oblivion.config import load_config
from oblivion.errors import InputError
from server.prepare import check, load

EMPTY = "class Lacking:\n    def __init__(self, ranks=None):\n        pass\n"
FEW = {"federation.clients": 2, "federation.clients-per-round": 2, "forget.client": "client-1"}
SUITE = """
from oblivion.metrics.suites.tofu import Tofu


class Half:
    requires = frozenset()


class Lacking(Tofu):
    {which} = {{**Tofu().{which}, "mine": Half()}}
"""
LEARNER = """
from oblivion.models.whole import WholeModels


class Model:
    task = read = write = None


class Lacking(WholeModels):
    name = "lacking"

    def load(self, config):
        return Model()
"""
TASK = """
import torch
from oblivion.models.whole import WholeModel, WholeModels


class Task:
    def encode(self, sample):
        return None


class Lacking(WholeModels):
    name = "lacking"

    def load(self, config):
        return WholeModel("lacking", Task(), torch.nn.Linear(2, 2), {}, 2)
"""
REMOVAL = "class Lacking:\n    requires = frozenset()\n\n    def plan(self, request, context):\n        return None\n"
METHODS = {"mine": {"method": "lacking"}}
KINDS = {
    "rule": ("aggregators", {"federation.aggregator": "lacking"}, EMPTY, "aggregator 'lacking' .*no init, no step"),
    "rule without a formula": (
        "aggregators",
        {"federation.aggregator": "lacking"},
        "from oblivion.aggregation.rule import Rule\n\n\nclass Lacking(Rule):\n    pass\n",
        "aggregator 'lacking' is not valid: it has no aggregate$",
    ),
    "scheme": (
        "schemes",
        {"lora.scheme": "lacking"},
        EMPTY,
        "scheme 'lacking' is not valid: it has no ranks, no trained",
    ),
    "objective": (
        "objectives",
        {"forget.methods.local.objective": "lacking"},
        EMPTY,
        "objective 'lacking' is not valid: it has no loss, no needs, no accepts_retain, no reduction$",
    ),
    "removal": (
        "removals",
        {"forget.methods": METHODS},
        EMPTY,
        "removal 'lacking' is not valid: it has no plan, no req",
    ),
    "removal without a plan": (
        "removals",
        {"forget.methods": METHODS},
        REMOVAL,
        "removal 'lacking' is not valid: its plan is no RemovalPlan of phases",
    ),
    "removal that requires a word that does not exist": (
        "removals",
        {"forget.methods": METHODS},
        REMOVAL.replace("frozenset()", "frozenset({'update'})"),
        "removal 'lacking' is not valid: it requires 'update'; did you mean 'updates'",
    ),
    "removal whose plan fails": (
        "removals",
        {"forget.methods": METHODS},
        REMOVAL.replace("return None", "return 1 / 0"),
        r"removal 'lacking' cannot make a plan: ZeroDivisionError: .* \(my_fed_lacking.py, line 5\), from package lac",
    ),
    "suite": (
        "suites",
        {"evaluate.suite": "lacking"},
        EMPTY,
        "suite 'lacking' is not valid: it has no rows, no metrics,",
    ),
    "metric": (
        "suites",
        {"evaluate.suite": "lacking"},
        SUITE.format(which="metrics"),
        "suite 'lacking': 'mine' is not a metric: it has no compute$",
    ),
    "kind of output": (
        "suites",
        {"evaluate.suite": "lacking"},
        SUITE.format(which="metrics").replace("= frozenset()", "= {'forget.anser'}\n    compute = None"),
        "suite 'lacking': 'mine' requires 'forget.anser', .*; did you mean 'answer'",
    ),
    "metric of clients": (
        "suites",
        {"evaluate.suite": "lacking"},
        SUITE.format(which="client_metrics"),
        "suite 'lacking': clients cannot measure 'mine': it has no compute, no value_range, no over$",
    ),
    "data set": (
        "datasets",
        {"data.name": "lacking"},
        "def Lacking(data):\n    return None\n",
        "dataset 'lacking' is not valid: it takes no clients, no seed$",
    ),
    "partition": (
        "partitions",
        {"data.partition": "lacking"},
        "def Lacking(samples, *, seed):\n    return None\n",
        "partition 'lacking' is not valid: it takes no clients$",
    ),
    "template": (
        "templates",
        {"data.template": "lacking"},
        EMPTY,
        "template 'lacking' is not valid: it has no special_tokens, no prompt, no full$",
    ),
    "task": (
        "tasks",
        {"model.name": "lacking"},
        EMPTY,
        "task 'lacking' is not valid: it has no locate, no digest,.* no load",
    ),
    "task without load": (
        "tasks",
        {"model.name": "lacking"},
        "from oblivion.models.whole import WholeModels\n\n\nclass Lacking(WholeModels):\n    name = 'lacking'\n",
        "task 'lacking' is not valid: it has no load$",
    ),
    "task without a name": (
        "tasks",
        {"model.name": "lacking"},
        LEARNER.replace('    name = "lacking"\n\n', ""),
        "task 'lacking' is not valid: it has no name$",
    ),
    "model in memory": (
        "tasks",
        {"model.name": "lacking"},
        LEARNER,
        "task 'lacking' .* no model, no parameters,.* no over,",
    ),
    "rows of a task": (
        "tasks",
        {"model.name": "lacking"},
        TASK,
        "task 'lacking' .* no check, no size, no alternate, no coll",
    ),
    "way to learn": (
        "learnings",
        {"federation.learning": "lacking"},
        EMPTY,
        "learning 'lacking' is not valid: it has no phases$",
    ),
    "way to learn without phases": (
        "learnings",
        {"federation.learning": "lacking"},
        "class Lacking:\n    def phases(self, rounds, replay):\n        return [3]\n",
        "learning 'lacking' is not valid: its phases are no tuple of phases$",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_that_lacks_something_is_refused_at_load(install: Install, tmp_path: Path, kind: str) -> None:
    group, settings, code, said = KINDS[kind]
    install("lacking", "1", {group: {"lacking": "my_fed_lacking:Lacking"}}, {"my_fed_lacking.py": code})
    with pytest.raises(InputError, match=said) as raised:
        load(check(load_config(None, {**FEW, **settings}))[0])
    assert "\n" not in str(raised.value)
