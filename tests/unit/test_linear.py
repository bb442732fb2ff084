"""Logistic regression on vectors: numbers by hand and by scikit-learn, the rows, and what is refused."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oblivion.config import RunConfig, TrainConfig, load_config
from oblivion.data.federation import resolve
from oblivion.data.vectors import classes_of, features_of, vector_sample
from oblivion.errors import InputError, IntegrityError, OblivionError
from oblivion.learners import learner_of
from oblivion.models.adapter_folder import WEIGHTS
from oblivion.models.linear import LinearModel, LinearModels
from oblivion.objectives.terms import objective_from
from oblivion.tasks.linear import VectorClasses
from oblivion.training.local import LocalTask, train_client
from oblivion.types import RoundInfo, Sample
from server.prepare import prepare

INFO = RoundInfo(branch="main", round=1, rounds=1, population=("client-0",), seed=0)
THREE = math.log(3.0)


def row(features: tuple[float, ...], label: int, classes: int = 2) -> Sample:
    return vector_sample(features, label, classes, id="r/0")


def config(**settings: Any) -> RunConfig:
    return load_config(None, {"model.name": "linear", "data.name": "gaussian", "evaluate.suite": "classes", **settings})


def test_one_step_by_hand() -> None:
    """At zero every class has probability 1/2, so the gradient of the true class is -x/2 and of the other x/2."""
    learner = LinearModel(2, 2)
    start = learner.initial_adapter(0)
    settings = TrainConfig(optimizer="sgd", learning_rate=1.0, local_epochs=1, clip_norm=100.0)
    encoded = learner.task.encode(row((2.0, -4.0), 1))
    update = train_client(
        learner, start, LocalTask(client_id="c", rows={"retain": [encoded]}), objective_from("lm", {}), settings, INFO
    )
    assert update.metrics["loss"] == pytest.approx(math.log(2.0)) and update.metrics["tokens"] == 1.0
    assert update.delta["weight"].tolist() == [[-1.0, 2.0], [1.0, -2.0]]
    assert update.delta["bias"].tolist() == [-0.5, 0.5]


def test_it_ends_where_scikit_learn_ends() -> None:
    """Full-batch descent on one client gives the probabilities of scikit-learn's regression."""
    from sklearn.linear_model import LogisticRegression

    data = resolve(config(**{"federation.clients": 1, "data.parameters": {"rows_per_client": 120, "distance": 0.5}}))
    samples = data.clients["client-0"]
    learner = LinearModel(8, 3)
    rows = [learner.task.encode(sample) for sample in samples]
    settings = TrainConfig(optimizer="sgd", learning_rate=1.0, local_epochs=300, clip_norm=1e9, batch_size=200)
    lm, task = objective_from("lm", {}), LocalTask(client_id="c", rows={"retain": rows})
    delta = train_client(learner, learner.initial_adapter(0), task, lm, settings, INFO).delta
    fitted = LogisticRegression(C=1e9, tol=1e-10, max_iter=10_000)
    fitted.fit([features_of(sample) for sample in samples], [int(sample.answer) for sample in samples])
    learner.write(delta)
    ours = torch.softmax(learner.model(torch.tensor([features_of(s) for s in samples])), 1).detach()
    theirs = torch.tensor(fitted.predict_proba([features_of(sample) for sample in samples]))
    assert (ours - theirs).abs().max() < 0.02


def test_rows_batches_and_outputs() -> None:
    task, model = VectorClasses(2, 2), LinearModel(2, 2)
    model.write({"weight": torch.eye(2), "bias": torch.zeros(2)})
    encoded = task.encode(row((THREE, 0.0), 0))
    assert encoded.labels == (0,) and encoded.size == 1 and task.blank(encoded).labels == ()
    assert task.alternate(row((THREE, 0.0), 1)).labels == (0,)
    batch = task.collate([encoded, task.blank(encoded)])
    logits = task.forward(model.model, batch, {"logits"})["logits"]
    assert batch.size == 2 and batch.answers.size == 2 and logits.shape == (1, 2)
    assert torch.softmax(logits, 1).tolist()[0] == pytest.approx([0.75, 0.25])
    with pytest.raises(IntegrityError, match="'bias' is missing"):
        model.write({"weight": torch.eye(2)})


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (replace(row((1.0,), 0), prompt="one two"), "not numbers with spaces"),
        (replace(row((1.0,), 0), prompt=""), "not numbers with spaces"),
        (row((1.0, math.nan), 0), "feature 2 is not a finite number"),
        (row((math.inf, 1.0), 0), "feature 1 is not a finite number"),
        (row((1e30, 1.0), 0), "feature 1 is too large"),
        (row((1.0,), 0), "has 1 features, and the model has 2"),
        (row((1.0, 2.0), 0, classes=3), "has 3 classes, and the model has 2"),
        (replace(row((1.0, 2.0), 0), answer="7"), "are not the classes 0, 1, 2"),
        (replace(row((1.0, 2.0), 0), wrong_answers=()), "are not the classes 0, 1, 2"),
    ],
)
def test_a_row_that_is_no_vector_is_refused(sample: Sample, said: str) -> None:
    with pytest.raises(InputError) as raised:
        VectorClasses(2, 2).encode(sample)
    assert said in str(raised.value) and str(raised.value).startswith("r/0: ") and "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "classes"), [("breast_cancer", 2), ("digits", 10), ("iris", 3), ("wine", 3)])
@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards"])
def test_the_sets_of_scikit_learn(name: str, classes: int, partition: str) -> None:
    settings = {"data.name": "sklearn", "data.parameters": {"set": name}, "data.partition": partition}
    data = resolve(config(**settings, **{"federation.clients": 3}))
    held = torch.tensor([features_of(sample) for sample in data.groups["holdout"]])
    assert classes_of(data.groups["holdout"][0]) == classes and held.mean(0).abs().max() < 0.1
    owned = [sample.id for rows in data.clients.values() for sample in rows]
    assert len(owned) == len(set(owned)) and len(owned) > 1.5 * len(held)


def test_natural_owners_of_scikit_learns_rows_are_the_classes() -> None:
    data = resolve(config(**{"data.name": "sklearn", "data.parameters": {"set": "wine"}, "federation.clients": 3}))
    assert [{row.answer for row in rows} for rows in data.clients.values()] == [{"0"}, {"1"}, {"2"}]


def test_a_clients_generated_rows_do_not_depend_on_the_others() -> None:
    few, many = (resolve(config(**{"federation.clients": count})).clients for count in (2, 5))
    assert few["client-1"] == many["client-1"] and len(many) == 5


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    path, held = tmp_path / "rows.csv", tmp_path / "held.csv"
    path.write_text("kind,a,who,b\n0,1,ann,2.5\n1,-1,ann,0\n0,3,bob,1e-3\n")
    held.write_text("kind,a,b\n2,1,1\n")
    settings = {"data.name": "vectors", "data.path": str(path), "data.parameters": {"holdout": str(held)}}
    named = {"data.columns": {"label": "kind", "client": "who"}, "federation.clients": 2}
    resolved = config(**settings, **named)
    data = resolve(resolved)
    assert [features_of(row) for row in data.clients["ann"]] == [(1.0, 2.5), (-1.0, 0.0)]
    assert [row.answer for row in data.clients["bob"]] == ["0"] and classes_of(data.clients["bob"][0]) == 3
    assert learner_of(resolved).parameters["weight"].shape == (3, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("label,a,b\n0,1,nan\n", "rows.csv:2: column 'b' is not a finite number"),
        ("label,a,b\n0,1,1\n1,inf,1\n", "rows.csv:3: column 'a' is not a finite number"),
        ("label,a,b\n0,1,1\n1,1e9,1\n", "rows.csv:3: column 'a' is too large"),
        ("label,a,b\n0,secret,1\n", "rows.csv:2: column 'a' holds no number"),
        ("label,a,b\n0,1,\n", "rows.csv:2: column 'b' is empty"),
        ("label,a,b\n4,1,1\n", "rows.csv:2: column 'label' holds no class; whole numbers from 0 to 2"),
        ("label,a,b\n-1,1,1\n", "rows.csv:2: column 'label' holds no class"),
        ("label,a,b\ncat,1,1\n", "rows.csv:2: column 'label' holds no class"),
        ("class,a,b\n0,1,1\n", "there is no column 'label'; set data.columns.label"),
        ("label\n0\n", "no header with several columns"),
    ],
)
def test_a_bad_table_is_refused_with_file_and_row(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    settings = {"data.name": "vectors", "data.path": str(path), "data.parameters": {"classes": 3}}
    with pytest.raises(OblivionError) as raised:
        resolve(config(**settings, **{"data.partition": "iid", "federation.clients": 1}))
    assert said in str(raised.value) and "secret" not in str(raised.value) and "\n" not in str(raised.value)


def test_rows_of_a_class_share_the_names_of_the_others() -> None:
    """A small table of a thousand classes took a thousand texts for every row."""
    one, two = (vector_sample((value,), 2, 1000, id="r") for value in (0.0, 1.0))
    assert one.wrong_answers is two.wrong_answers and len(one.wrong_answers) == 999


@pytest.mark.parametrize(("kind", "said"), [("pipe", "is a pipe"), ("text", "not the parameters"), ("", "cannot be")])
def test_parameters_that_are_none_are_refused(kind: str, said: str, tmp_path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / WEIGHTS)
    elif kind == "text":
        (tmp_path / WEIGHTS).write_text("no parameters")
    with pytest.raises(InputError, match=said):
        LinearModels().read_adapter(tmp_path)


def test_rows_of_two_widths_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"label": 0, "a": 1}\n{"label": 1, "a": 1, "b": 2}\n')
    settings = {"data.name": "vectors", "data.path": str(path), "data.partition": "iid", "federation.clients": 1}
    with pytest.raises(InputError, match=r"rows.jsonl:2: has another column, 'b'"):
        resolve(config(**settings))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data.name": "authors"}, "model.name = 'linear' needs vectors"),
        ({"model.dtype": "bfloat16"}, "model.dtype = 'bfloat16'"),
        ({"model.revision": "abc"}, "model.revision = 'abc'"),
        *(
            ({"lora.scheme": scheme}, f"lora.scheme = '{scheme}' combines the LoRA factors A and B, and 'bias'")
            for scheme in ("ffa", "flexlora", "flora", "fedex", "rolora")
        ),
        ({"federation.ranks": {"client-1": 16}}, "federation.ranks are ranks of LoRA factors, and 'bias' is none"),
        (
            {"forget.client": "client-1", "forget.methods": {"local": {"objective": "rmu"}}},
            "objective 'rmu' needs 'hidden:",
        ),
    ],
)
def test_what_does_not_go_with_the_model_is_refused_with_the_reason(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(OblivionError) as raised:
        prepare(config(**settings))
    assert said in str(raised.value) and "\n" not in str(raised.value)
