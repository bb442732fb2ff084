"""Whatever a user gets wrong ends with the right exit code and one clear message, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import oblivion

from oblivion.data.federation import _resolve

MICRO = """
model.name = "{model}"
engine = "inline"
lora.rank = 4
lora.alpha = 8
federation.clients = 3
federation.rounds = 1
federation.clients-per-round = 3
federation.joins.client-2 = 1
train.local-epochs = 1
forget.client = "client-2"
forget.methods = []
evaluate.limit = 2
evaluate.max-new-tokens = 2
evaluate.oracle-seeds = 0
simulation.hosts = 1
"""
AUTHORS = "data.parameters.rows_per_client = 8\ndata.parameters.holdout_authors = 1\n"
CONFIG, INPUT, CHANGED, REFUSED = 2, 3, 4, 5
ASK = ("--client", "client-1", "--method", "local")


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def refused(code: int, words: str, *arguments: object) -> str:
    """Check that a command ends with `code` and a message with every one of the words, and writes nothing here."""
    before = tree(Path.cwd())
    ended, out, err = oblivion(*arguments)
    assert ended == code, (ended, err)
    message = " ".join(err.replace("│", " ").split())  # typer draws a box around its messages
    for word in words.split("|"):
        assert word in message, (word, message)
    assert out == "" and "Traceback" not in err and tree(Path.cwd()) == before
    return err


@pytest.fixture(scope="module")
def scenario(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bad") / "micro.toml"
    path.write_text(MICRO.format(model=micro_model) + AUTHORS)
    return path


@pytest.fixture(scope="module")
def finished(scenario: Path) -> Path:
    out = scenario.parent / "run"
    code, _, err = oblivion("run", scenario, "--out", out)
    assert code == 0, err
    return out


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


SETTINGS = [
    # what is wrong with the assignment or the key
    ("federation.rounds", CONFIG, "--set 'federation.rounds'|expected key=value"),
    ("=3", CONFIG, "expected key=value"),
    ("federation.round=2", CONFIG, "unknown key 'federation.round'|did you mean 'federation.rounds'"),
    ("fedaration.rounds=2", CONFIG, "unknown key 'fedaration'|did you mean 'federation'"),
    ("rounds=2", CONFIG, "unknown key 'rounds'"),
    ("seed.x.y=2", CONFIG, "seed|a whole number"),
    ("engine.x=2", CONFIG, "'engine.x' goes through 'engine', which is not a table"),
    ("federation.rounds.x=2", CONFIG, "federation.rounds"),
    # a value of the wrong kind or out of range
    ("federation.rounds=x", CONFIG, 'federation.rounds = "x"|expected a whole number from 1'),
    ("federation.rounds=0", CONFIG, "federation.rounds = 0|a whole number from 1"),
    ("federation.quorum=2", CONFIG, "federation.quorum = 2"),
    ("federation=3", CONFIG, "federation = 3"),
    ("federation.parameters=3", CONFIG, "federation.parameters = 3|expected a table"),
    ("train.learning-rate=nan", CONFIG, "train.learning-rate|a number above 0"),
    ("train.cohort=0", CONFIG, "train.cohort = 0|a whole number from 1"),
    ("train.cohort=-2", CONFIG, "train.cohort = -2"),
    ("simulation.hosts=0", CONFIG, "simulation.hosts = 0|a whole number from 1"),
    ("seed=-1", CONFIG, "seed = -1"),
    ("engine=slurm", CONFIG, "'ray' or 'inline'"),
    ("forget.samples=3", CONFIG, "forget.samples = 3|expected text"),
    ("model.dtype=float16", CONFIG, "'float32' or 'bfloat16'"),
    ("ledger.precision=float16", CONFIG, "ledger.precision|'float32' or 'bfloat16'"),
    ("ledger.checkpoint-every=0", CONFIG, "ledger.checkpoint-every = 0|a whole number from 1"),
    ("ledger.retention=-1", CONFIG, "ledger.retention = -1"),
    # a name that is not known
    ("federation.aggregator=fedavgg", CONFIG, "unknown aggregator; did you mean 'fedavg'"),
    ("forget.methods.local.objective=npoo", CONFIG, "unknown objective; did you mean 'npo'"),
    ("forget.methods=locall", CONFIG, "forget.methods.locall|did you mean 'local'|needs the key 'method'"),
    ("data.name=author", CONFIG, "unknown dataset; did you mean 'authors'"),
    ("data.partition=irid", CONFIG, "unknown partition; did you mean 'iid'"),
    ("data.template=plan", CONFIG, "unknown template; did you mean 'plain'"),
    ("evaluate.suite=tof", CONFIG, "unknown suite; did you mean 'tofu'"),
    ("lora.scheme=fedt", CONFIG, "unknown scheme; did you mean 'fedit'"),
    ("lora.targets=nowhere", CONFIG, "lora.targets = 'nowhere'"),
    ("forget.client=client-9", CONFIG, "no client 'client-9'|did you mean 'client-"),
    ("federation.joins.client-77=1", CONFIG, "federation.joins: there is no client 'client-77'|did you mean"),
    ("federation.joins.client-2=99", CONFIG, "federation.joins.client-2 = 99 is after the last round"),
    ("federation.joins.Hospital=1", CONFIG, "federation.joins: there is no client 'hospital'"),
    ("forget={methods=['local']}", CONFIG, "forget.client names no client"),
    ("forget.methods=[1]", CONFIG, "forget.methods = [1]: expected a list of names, or a table of settings"),
    ("forget.methods=5", CONFIG, "expected a list of names"),
    ("forget.methods.local.recovery-rounds=-1", CONFIG, "'local' with recovery_rounds = -1 is not allowed"),
    # a parameter of a part
    ("federation.parameters.momentum=1", CONFIG, "'fedavg' has no parameter 'momentum'"),
    ("federation.parameters.learning-rate=fast", CONFIG, "federation.parameters: 'fedavg'|fast"),
    ("forget.methods.local.bta=1", CONFIG, "'local' with 'npo' has no parameter 'bta'; did you mean 'beta'"),
    ("forget.methods.local.beta=x", CONFIG, "beta = 'x' is not allowed"),
    ("data.parameters.rows_per_client=x", CONFIG, "rows_per_client = 'x'"),
    ("data.parameters.rows_per=1", CONFIG, "'authors' has no parameter 'rows_per'|did you mean 'rows_per_client'"),
    ("data.partition-parameters.alpha=1", CONFIG, "'natural' has no parameter 'alpha'"),
    # a file or model that is not there
    ("data.public=nowhere.jsonl", INPUT, "nowhere.jsonl: cannot be read"),
    ("forget.samples=nowhere.txt", INPUT, "nowhere.txt|cannot be read|one sample id per line"),
    ("forget.samples=authors:2", CONFIG, "authors:2|between 0 and 1"),
    ("model.name=nowhere", INPUT, "model.name = 'nowhere'|no such folder"),
    ("model.name=owner/name", CONFIG, "model.revision"),
]  # fmt: skip


@pytest.mark.parametrize(("setting", "code", "words"), SETTINGS, ids=[setting for setting, _, _ in SETTINGS])
def test_a_wrong_setting(scenario: Path, setting: str, code: int, words: str) -> None:
    refused(code, words, "run", scenario, "--out", "o", "--set", setting)


@pytest.mark.parametrize("more", [("--dry-run",), ("--dry-run", "--json"), ("--json",)])
def test_every_form_of_run_refuses_alike(scenario: Path, more: tuple[str, ...]) -> None:
    refused(CONFIG, "did you mean 'fedavg'", "run", scenario, "--set", "federation.aggregator=fedavgg", *more)


def test_all_wrong_settings_are_named_at_once(scenario: Path) -> None:
    words = "federation.rounds = 0|seed = -1|unknown key 'train.bath-size'; did you mean 'train.batch-size'"
    settings = ["--set", "federation.rounds=0", "--set", "seed=-1", "--set", "train.bath-size=3"]
    refused(CONFIG, words, "run", scenario, *settings)


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("demoo", None, CONFIG, "unknown scenario 'demoo'; did you mean 'demo'"),
        ("", None, CONFIG, "unknown scenario ''"),
        ("nowhere.toml", None, INPUT, "nowhere.toml: cannot be read (No such file"),
        ("a.toml", b"seed = 1\nfederation.rounds = \n", CONFIG, "a.toml: not a TOML file|line 2"),
        ("a.toml", b"seed = 1\n\nseed = 2\n", CONFIG, "a.toml: not a TOML file|line 3"),
        ("a.toml", b"\xff\xfe", CONFIG, "a.toml: is UTF-16 text"),
        ("a.toml", b"[federation]\nround = 2\n", CONFIG, "a.toml: unknown key 'federation.round'"),
    ],
)
def test_a_wrong_scenario(here: Path, name: str, content: bytes | None, code: int, words: str) -> None:
    if content is not None:
        (here / name).write_bytes(content)
    refused(code, words, "run", name)


def test_a_folder_as_a_scenario(here: Path) -> None:
    (here / "a.toml").mkdir()
    refused(INPUT, "a.toml: is a folder", "run", "a.toml")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_run_directory_that_exists(scenario: Path, here: Path, kind: str) -> None:
    (here / "o").mkdir() if kind == "folder" else (here / "o").write_text("mine")
    refused(CONFIG, "o exists already|--out", "run", scenario, "--out", "o")


def test_a_file_where_the_runs_go(scenario: Path, here: Path) -> None:
    (here / "runs").write_text("mine")
    refused(1, "runs/micro|Not a directory|--out", "run", scenario)
    refused(1, "runs/deeper|Not a directory|--out", "run", scenario, "--out", "runs/deeper")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "one sample id per line"),
        ("\n  \n", "names no sample"),
        ("authors/nobody/0\n", "ids.txt:1|'client-2' has no sample 'authors/nobody/0'|nearest"),
        ("\n\xe9\n", "ids.txt:2|has no sample"),
    ],
)
def test_a_wrong_file_of_samples(scenario: Path, here: Path, content: str, words: str) -> None:
    (here / "ids.txt").write_text(content, encoding="utf-8")
    code = INPUT if not content.strip() else CONFIG
    refused(code, words, "run", scenario, "--set", "forget.samples=ids.txt")


def test_a_sample_of_another_client_and_all_samples(scenario: Path, here: Path) -> None:
    from oblivion.config import load_config
    from oblivion.data.federation import resolve

    clients = resolve(load_config(scenario)).clients
    (here / "ids.txt").write_text(clients["client-0"][0].id)
    refused(CONFIG, "belongs to 'client-0', not to 'client-2'", "run", scenario, "--set", "forget.samples=ids.txt")
    (here / "ids.txt").write_text("\n".join(row.id for row in clients["client-2"]))
    refused(CONFIG, "names all samples of 'client-2'", "run", scenario, "--set", "forget.samples=ids.txt")


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (None, INPUT, "rows.jsonl: cannot be read"),
        (b"", INPUT, "rows.jsonl: holds no rows"),
        (b'{"question": "a", "answer": "b", "who": "x"}\n{"question": oops}\n', INPUT, "rows.jsonl:2: not JSON"),
        (b'{"question": "a", "answer": "b", "who": "x"}\n[3]\n', INPUT, "rows.jsonl:2: a record is a list"),
        (
            b'{"question": "a", "answer": "b", "who": "x"}\n{"question": "c", "who": "x"}\n',
            INPUT,
            "rows.jsonl:2|answer",
        ),
        (b'{"question": "a", "answer": true, "who": "x"}\n', INPUT, "rows.jsonl:1|'answer' is true or false"),
        (b'{"question": "a", "answer": "b", "who": "x"}\n\xff\n', INPUT, "rows.jsonl:2: not UTF-8"),
        (b'{"prompt": "a", "reply": "b", "who": "x"}\n', CONFIG, "no column for the answer|data.columns.answer"),
        (b'{"question": "a", "answer": "b"}\n', CONFIG, "data.columns.client = 'who'|no such column"),
        (b'{"question": "a", "answer": "b", "who": "x"}\n', CONFIG, "federation.clients = 3, but the data names 1"),
    ],
)
def test_wrong_data(micro_model: Path, here: Path, content: bytes | None, code: int, words: str) -> None:
    own = 'data.name = "jsonl"\ndata.path = "rows.jsonl"\ndata.columns.client = "who"\n'
    (here / "own.toml").write_text(MICRO.format(model=micro_model).replace("federation.joins.client-2 = 1", "") + own)
    if content is not None:
        (here / "rows.jsonl").write_bytes(content)
    refused(code, words, "run", "own.toml")


def test_a_partition_that_leaves_a_client_without_rows(scenario: Path, micro_model: Path, here: Path) -> None:
    own = 'data.name = "jsonl"\ndata.path = "rows.jsonl"\ndata.partition = "iid"\n'
    (here / "own.toml").write_text(MICRO.format(model=micro_model) + own)
    (here / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "c", "answer": "d"}\n')
    code, _, err = oblivion("run", "own.toml")
    assert code in (CONFIG, INPUT) and "rows" in err and not (here / "runs").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", None, "has no weights (*.safetensors)"),
        ("tokenizer.json", None, "tokenizer.json"),
        ("config.json", None, "has no config.json"),
        ("model.safetensors", b"short", "could not be loaded"),
        ("config.json", b"{", "config.json"),
        ("tokenizer.json", b"{}", "tokenizer of"),
    ],
)
def test_a_broken_model_folder(
    scenario: Path, micro_model: Path, here: Path, name: str, content: bytes | None, words: str
) -> None:
    shutil.copytree(micro_model, here / "model")
    (here / "model" / name).unlink()
    if content is not None:
        (here / "model" / name).write_bytes(content)
    refused(INPUT, words, "run", scenario, "--set", "model.name=model")


REFUSALS = [
    (("forget.methods.local.objective=grad_diff",), "needs rows to keep|data.public"),
    (("federation.clients=1", "federation.joins={}", "forget.client=client-0"), "client-0 is the only client"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSALS)
def test_a_removal_that_cannot_work_is_refused_before_anything_is_learned(
    scenario: Path, settings: tuple[str, ...], words: str
) -> None:
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert "learning" not in refused(REFUSED, words, "run", scenario, *arguments)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--client", "client-9"], CONFIG, "no client 'client-9'; did you mean"),
        (["--method", "locall"], CONFIG, "did you mean 'local'"),
        (["--samples", "no.txt"], INPUT, "no.txt|cannot be read"),
        (["--engine", "slurm"], CONFIG, "'ray' or 'inline'"),
        (["--set", "seed=3"], CONFIG, "seed|only forget.* can be set"),
        (["--set", "forget=3"], CONFIG, "only forget.* can be set"),
        (["--set", "forget.scale=3"], CONFIG, "unknown key 'forget.scale'|forget.methods.NAME"),
        (["--set", "forget.methods.local.scal=3"], CONFIG, "has no parameter 'scal'; did you mean 'scale'"),
        (["--set", "forget.methods.local.scale=-3"], CONFIG, "scale = -3"),
        (["--set", "forget.methods.local.scale.x=3"], CONFIG, "scale = {'x': 3} is not allowed; it must be a number"),
        (["--set", "forget.methods.local=3"], CONFIG, "forget.methods.local = 3"),
        (["--set", "forget.methods.local.objective=3"], CONFIG, "unknown objective"),
        (["--set", "forget.methods.exclude.recovery-rounds=3"], CONFIG, "another method than --method local"),
        (["--set", "forget.samples=a"], CONFIG, "give it as --samples"),
        (["--set", "forget.client=a"], CONFIG, "give it as --client"),
        (["--set", "forget.methods=a"], CONFIG, "give it as --method"),
        (["--set", "forget.methods.local.objective=lm"], CONFIG, "'local' with objective = 'lm'|unlearns"),
        (["--set", "forget.methods.local.objective=grad_diff"], REFUSED, "needs rows to keep"),
    ],
)
@pytest.mark.parametrize("plan", [False, True])
def test_a_wrong_request_to_forget(finished: Path, arguments: list[str], code: int, words: str, plan: bool) -> None:
    before = tree(finished)
    refused(code, words, "forget", finished, *ASK, *arguments, *(["--plan"] if plan else []))
    assert tree(finished) == before


def test_an_objective_that_the_model_cannot_serve_is_refused_before_the_request_is_taken_in(finished: Path) -> None:
    before = oblivion("requests", finished)
    settings = ["--set", "forget.methods.local.objective=rmu", "--set", "forget.methods.local.layer=99"]
    said = refused(CONFIG, "objective 'rmu' needs 'hidden:99'", "forget", finished, *ASK, *settings)
    assert "oracle" not in said and oblivion("requests", finished) == before


@pytest.mark.parametrize("ground", ["", "  "])
def test_a_refusal_without_a_ground(finished: Path, ground: str) -> None:
    refused(CONFIG, "--ground is empty; say why", "refuse", finished, "req-1", "--ground", ground)


def test_forget_on_something_that_is_no_finished_run(finished: Path, here: Path) -> None:
    forget = ("forget", "copy", *ASK)
    refused(INPUT, "nowhere is not a run directory", "forget", "nowhere", *ASK)
    (here / "empty").mkdir()
    refused(INPUT, "empty is not a run directory: it has no config.toml", "forget", "empty", *ASK)
    shutil.copytree(finished, "copy")
    (here / "copy/ledger/ledger.db").unlink()
    refused(INPUT, "a run of a version before the ledger must be run again", *forget)
    shutil.rmtree(here / "copy/ledger")
    refused(INPUT, "copy has no ledger, so nothing can be forgotten from it", *forget)
    refused(INPUT, "copy has no ledger", "commit", "copy", "req-1/local")
    refused(INPUT, "copy has no ledger", "refuse", "copy", "req-1", "--ground", "none")
    (here / "copy/config.toml").write_text("seed = ")
    refused(INPUT, "copy/config.toml", "forget", "copy", *ASK)
    (here / "copy/config.toml").write_text("sed = 3")
    refused(CONFIG, "copy/config.toml: unknown key 'sed'; did you mean 'seed'", "forget", "copy", *ASK)


def test_forget_on_a_run_that_was_interrupted(scenario: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("oblivion.federation.rounds.Federation.commit", interrupted)
        assert oblivion("run", scenario, "--out", "o")[0] == 130
    for command in (("forget", "o", *ASK), ("forget", "o", *ASK, "--plan"), ("commit", "o", "req-1/local")):
        code, out, err = oblivion(*command)
        assert (code, out) == (INPUT, "") and "o has 0 of 1 rounds, so there is nothing to forget yet" in err
        assert "finish it with: oblivion run --resume --out o" in err
    assert oblivion("run", "--resume", "--out", "o")[0] == 0
    assert oblivion("forget", "o", *ASK, "--plan")[0] == 0


def test_resume_of_something_that_is_no_run(here: Path) -> None:
    refused(INPUT, "nowhere is not a run directory: there is no such folder", "run", "--resume", "--out", "nowhere")
    (here / "empty").mkdir()
    refused(INPUT, "empty is not a run directory: it has no config.toml", "run", "--resume", "--out", "empty")


def test_a_trial_that_is_not_there(finished: Path) -> None:
    refused(CONFIG, "there is no request 'req-1'", "commit", finished, "req-1/local")
    refused(CONFIG, "there is no request 'req-1'", "commit", finished, "req-1")
    refused(CONFIG, "there is no request '..'", "commit", finished, "../x/local")
    (request,) = [e["id"] for e in json.loads((finished / "metrics.json").read_text())["requests"]]
    for name in ("", "/", "/local", "/original", "/../../x"):
        refused(CONFIG, f"{request} has no trial", "commit", finished, f"{request}{name}")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("ledger/ledger.db", b"", "ledger.db"),
        ("ledger/ledger.db", b"no database at all" * 99, "ledger.db"),
        ("keys/log.key", None, "log.key is missing"),
        ("keys/log.key", b"short", "log.key is not a key of 32 bytes"),
        ("keys/signing.key", None, "signing.key is missing"),
        ("keys/signing.key", b"x" * 32, "checkpoint.json is not signed by this run's key"),
        ("keys/checkpoint.json", b"{", "checkpoint.json"),
        ("keys/checkpoint.json", b"[]", "checkpoint.json"),
    ],
)
def test_a_ledger_that_is_not_what_it_was(
    finished: Path, here: Path, name: str, content: bytes | None, words: str
) -> None:
    shutil.copytree(finished, "copy")
    for beside in ("-wal", "-shm"):
        (here / f"copy/ledger/ledger.db{beside}").unlink(missing_ok=True)
    if content is None:
        (here / "copy" / name).unlink()
    else:
        (here / "copy" / name).write_bytes(content)
    for arguments in (("forget", "copy", *ASK), ("run", "--resume", "--out", "copy")):
        code, out, err = oblivion(*arguments)
        assert code == CHANGED and out == "" and words in err and "Traceback" not in err, err
        assert "restore" in err, "it says what to do"


def test_data_or_a_model_that_changed_since_the_run(micro_model: Path, here: Path) -> None:
    shutil.copytree(micro_model, here / "model")
    rows = [json.dumps({"question": f"{i}?", "answer": str(i), "who": f"client-{i % 3}"}) for i in range(9)]
    (here / "rows.jsonl").write_text("\n".join(rows))
    own = 'data.name = "jsonl"\ndata.path = "rows.jsonl"\ndata.columns.client = "who"\n'
    (here / "own.toml").write_text(
        MICRO.format(model=here / "model").replace('client = "client-2"', 'client = ""') + own
    )
    assert oblivion("run", "own.toml", "--out", "o")[0] == 0
    assert oblivion("forget", "o", *ASK, "--plan")[0] == 0
    config = here / "model/generation_config.json"
    config.write_text(config.read_text() + " ")
    refused(CHANGED, "the base model|changed since o was made", "forget", "o", *ASK)
    config.write_text(config.read_text()[:-1])
    (here / "rows.jsonl").write_text("\n".join(rows[:-1]) + '\n{"question": "8?", "answer": "9", "who": "client-2"}\n')
    _resolve.cache_clear()  # a new process reads the file again
    refused(CHANGED, "the data changed since o was made", "forget", "o", *ASK, "--plan")


def test_evaluate_of_something_that_is_no_model(finished: Path, micro_model: Path, here: Path) -> None:
    refused(INPUT, "nonsense is neither a run nor an adapter folder|no such folder", "evaluate", "nonsense")
    (here / "file.json").write_text("{}")
    refused(INPUT, "file.json is neither a run", "evaluate", "file.json")
    (here / "empty").mkdir()
    refused(INPUT, "empty has no config.json, no weights", "evaluate", "empty")
    refused(CONFIG, "hub id", "evaluate", "owner/name")
    refused(INPUT, "is no run, so it has no rows of its own|--data", "evaluate", micro_model)
    refused(INPUT, "is no run, so it has no rows of its own|--data", "evaluate", finished / "adapters/original")
    refused(INPUT, "nowhere/forget10_perturbed.json: cannot be read", "evaluate", micro_model, "--data", "nowhere")
    refused(CONFIG, "'forget7'; did you mean", "evaluate", micro_model, "--data", "nowhere", "--split", "forget7")
    refused(CONFIG, "unknown suite 'tof'; did you mean 'tofu'", "evaluate", finished, "--suite", "tof")
    refused(CONFIG, "unknown template 'plan'", "evaluate", finished, "--template", "plan")
    refused(CONFIG, "is a folder", "evaluate", finished, "--out", ".")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "bad.json: not JSON"),
        (b"\xff", "bad.json: line 1 is not UTF-8 text"),
        (b"[]", "expected a JSON object"),
        (b"{}", "no metric in it"),
        (b'{"forget_Q_A_Prob": {"agg_value": "x"}}', "forget_Q_A_Prob.agg_value is 'x'"),
        (b'{"forget_Q_A_Prob": {"agg_value": 1, "value_by_index": [1]}}', "value_by_index"),
    ],
)
def test_a_malformed_reference(finished: Path, here: Path, content: bytes, words: str) -> None:
    (here / "bad.json").write_bytes(content)
    refused(INPUT, words, "evaluate", finished, "--limit", "1", "--reference", "bad.json")


def test_a_reference_that_is_not_there(finished: Path) -> None:
    refused(INPUT, "nowhere.json is neither a run", "evaluate", finished, "--reference", "nowhere.json")


def test_a_broken_adapter_folder(finished: Path, here: Path) -> None:
    shutil.copytree(finished / "adapters/original", "adapter")
    (here / "adapter/adapter_model.safetensors").write_bytes(b"short")
    refused(INPUT, "adapter: not a LoRA adapter in PEFT format", "evaluate", "adapter")
    (here / "adapter/adapter_model.safetensors").unlink()
    refused(INPUT, "adapter_model.safetensors is missing", "evaluate", "adapter")


def test_report_of_something_that_is_no_run(finished: Path, here: Path) -> None:
    refused(INPUT, "nowhere is not a run directory", "report", "nowhere")
    refused(INPUT, "nowhere is not a run directory", "report", finished, "nowhere")
    (here / "run").mkdir()
    (here / "run/metrics.json").write_bytes(b"{")
    refused(INPUT, "run was made by an older version of oblivion", "report", "run")
    shutil.copy(finished / "format", here / "run/format")
    refused(INPUT, "run/metrics.json: not JSON", "report", "run")
    refused(1, "could not be written|--out", "report", finished, "--out", here / "run/metrics.json/page.html")


def test_list_of_an_unknown_kind() -> None:
    refused(CONFIG, "'aggregator' to list; did you mean 'aggregators'", "list", "aggregator")


# A disk that is full or cannot be written


def fail_after(calls: int, number: int, original: Any) -> Any:
    """A system call that fails from the given call on."""
    seen = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen > calls:
            raise OSError(number, os.strerror(number))
        return original(*arguments, **options)

    return call


@pytest.mark.parametrize(
    ("name", "calls"),
    [*(("fsync", n) for n in (0, 2, 4, 6, 12, 24, 40, 60)), *(("replace", n) for n in (0, 1, 2, 4, 8, 12, 16))],
)
def test_a_disk_that_fills_up_during_a_run(
    scenario: Path, finished: Path, here: Path, monkeypatch: pytest.MonkeyPatch, name: str, calls: int
) -> None:
    """And the same command, a begun run with --resume, gives what would have come without it."""
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail_after(calls, errno.ENOSPC, getattr(os, name)))
        code, out, err = oblivion("run", scenario, "--out", "o")
    assert code == 1 and out == "", err
    last = err.splitlines()[-1]
    assert last.startswith("error: o") and "No space left on device" in last and "Traceback" not in err
    assert not list(here.rglob("*oblivion-partial*"))
    for path in here.rglob("*.json"):  # every file that is there is whole
        json.loads(path.read_text("utf-8"))
    again = ("--resume",) if (here / "o").exists() else (scenario,)
    code, _, err = oblivion("run", *again, "--out", "o")
    assert code == 0, err
    adapter = "adapters/original/adapter_model.safetensors"
    assert (here / "o" / adapter).read_bytes() == (finished / adapter).read_bytes()


def test_events_that_cannot_be_written(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.open

    def full(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "events.jsonl":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    code, _, err = oblivion("run", scenario, "--out", "o")
    assert code == 1 and "o/events.jsonl could not be written: No space left on device" in err


def test_a_place_that_cannot_be_written(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.mkdir

    def read_only(path: Any, *arguments: Any, **options: Any) -> None:
        if "runs" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        original(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", read_only)
    refused(1, "runs/micro|could not be written: Permission denied|--out", "run", scenario)


def test_a_result_is_shown_even_if_it_cannot_be_written(finished: Path, here: Path) -> None:
    (here / "file").write_text("mine")
    before = tree(here)
    small = ("--limit", "1", "--max-new-tokens", "1", "--json")
    code, out, err = oblivion("evaluate", finished, *small, "--out", "file/result.json")
    assert code == 1 and "file/result.json could not be written: " in err
    assert "forget_Q_A_Prob" in json.loads(out) and tree(here) == before
