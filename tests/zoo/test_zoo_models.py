"""Models of many architectures, each held against plain transformers, PEFT and torch; what is not supported says so."""

from __future__ import annotations

from pathlib import Path

import peft
import plain
import pytest
import torch
from tiny_models import CONTEXT, KINDS, build

from oblivion.config import LoraConfig
from oblivion.errors import OblivionError
from oblivion.metrics.engine.generation import _is_plain
from oblivion.models.attention import sees_all_before
from oblivion.models.resident import ResidentModel
from oblivion.training.fused import fusible

REFUSED = {
    "bert": "depends on tokens that come later",
    "roberta-decoder": "counts positions from its padding token's id upwards",
    "gemma3-nested": "text_config",
}
"""What is not opened at all, and what the one line says."""
_STATE_SPACE = ("mamba", "mamba2", "falcon-h1", "nemotron-h")
TARGETS = dict.fromkeys(_STATE_SPACE, ("in_proj",))
"""`lora.targets` where PEFT refuses ``all-linear``."""
TELLING = ("mistral", "gemma2", "opt", "gpt2", "mixtral", "mamba")
"""Windows, caps, dropout, transposed weights, experts, states."""
LOSS, UPDATE = 1e-4, 1e-4
OPENED = [kind for kind in KINDS if kind not in REFUSED]
KIND = [pytest.param(kind, marks=[] if kind in TELLING else pytest.mark.slow) for kind in OPENED]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def folder_of(kind: str, folders: Path) -> Path:
    folder = folders / kind
    return folder if folder.is_dir() else build(kind, folder)


def resident_of(kind: str, folder: Path) -> ResidentModel:
    targets = TARGETS.get(kind, "all-linear")
    return ResidentModel(plain.opened(folder), LoraConfig(rank=4, alpha=8, targets=targets))


@pytest.mark.parametrize("kind", KIND)
def test_every_row_and_every_text_is_the_plain_models(kind: str, folders: Path) -> None:
    folder = folder_of(kind, folders)
    base, other = plain.opened(folder), plain.plain_model(folder)
    assert base.max_length >= CONTEXT
    assert plain.farthest_score(base.model, other, plain.scored_rows(CONTEXT)) < LOSS
    assert plain.wrong_texts(base, other) == []


@pytest.mark.parametrize("kind", KIND)
def test_a_visit_is_that_of_plain_peft_alone_and_in_a_cohort(kind: str, folders: Path) -> None:
    folder = folder_of(kind, folders)
    resident = resident_of(kind, folder)
    start, tasks = plain.start_of(resident), plain.clients()
    alone, again = ([plain.trained(resident, start, [task])[0].delta for task in tasks] for _ in range(2))
    together = [update.delta for update in plain.trained(resident, start, tasks)]
    settings = resident.model.peft_config["default"]
    for task, one, other, shared in zip(tasks, alone, again, together, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
        expected = plain.plain_visit(folder, settings, start, task)
        assert plain.distance(one, expected) < UPDATE
        assert plain.distance(shared, expected) < UPDATE


@pytest.mark.parametrize("kind", KIND)
def test_an_exported_adapter_in_plain_peft_is_what_is_measured(kind: str, folders: Path, tmp_path: Path) -> None:
    folder = folder_of(kind, folders)
    resident = resident_of(kind, folder)
    adapter = plain.start_of(resident)
    resident.write(adapter)
    resident.save(adapter, tmp_path / "adapter", str(folder))
    other = peft.PeftModel.from_pretrained(plain.plain_model(folder), tmp_path / "adapter").eval()
    rows = plain.scored_rows(CONTEXT)
    before = {name: tensor.clone() for name, tensor in resident.model.state_dict().items()}
    with resident.merged() as merged:
        assert plain.farthest_score(merged, other, rows) < LOSS
    assert plain.farthest_score(plain.opened(folder).model, other, rows) > 100 * LOSS, "the adapter changes something"
    assert all(torch.equal(before[name], tensor) for name, tensor in resident.model.state_dict().items())


def documented() -> dict[str, tuple[str, ...]]:
    """Kind to its row of the table in docs/models.md."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(("| together", "| one by"))]
    return {kind.strip("` "): tuple(row[:3]) for row in rows for kind in row[3].split(",")}


def test_the_page_on_models_has_every_architecture_once() -> None:
    assert sorted(documented()) == sorted(OPENED)


@pytest.mark.parametrize("kind", KIND)
def test_the_page_on_models_says_which_way_it_goes(kind: str, folders: Path) -> None:
    resident = resident_of(kind, folder_of(kind, folders))
    model = resident.base.model
    assert documented()[kind] == (
        "together" if fusible(resident) is None else "one by one",
        "one sequence" if sees_all_before(model, 200) else "one by one",
        "side by side" if _is_plain(model, 200) else "by transformers",
    )


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_supported_is_refused_by_name(kind: str, folders: Path) -> None:
    with pytest.raises(OblivionError) as caught:
        plain.opened(folder_of(kind, folders))
    text = str(caught.value)
    assert REFUSED[kind] in text and str(folders / kind) in text and "\n" not in text
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("kind", _STATE_SPACE)
def test_targets_that_peft_refuses_are_named(kind: str, folders: Path) -> None:
    with pytest.raises(OblivionError, match=r"lora\.targets = 'all-linear': .*'out_proj'") as caught:
        ResidentModel(plain.opened(folder_of(kind, folders)), LoraConfig())
    assert "\n" not in str(caught.value)
