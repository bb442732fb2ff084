"""Parts of other packages: what they do to fingerprint, manifest and lists, and what a broken one does not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import oblivion
from outside import RULE, Install, uninstall
from outside import install as install

from oblivion.config import RunConfig, load_config
from oblivion.data.federation import resolve
from oblivion.errors import ConfigError, InputError, OblivionError
from oblivion.parts import outside_packages, run_fingerprint
from oblivion.provenance import OWN, code_fingerprint
from server.prepare import check_names

ROOT = Path(__file__).resolve().parents[2]
MINE = {"aggregators": {"mine": "my_fed.rules:Mine"}}
USES_MINE = ["federation.aggregator=mine"]


def files(how: str = "as ever") -> dict[str, str]:
    return {"my_fed/__init__.py": "", "my_fed/rules.py": RULE.format(how=how)}


def test_a_part_of_another_package_is_in_the_fingerprint_of_a_run_that_uses_it(install: Install) -> None:
    plain = run_fingerprint(RunConfig())
    assert plain == code_fingerprint()
    seen = {plain}
    for version, how in (("0.1", "as ever"), ("0.2", "as ever"), ("0.2", "otherwise")):
        site = install("my-fed", version, MINE, files(how))
        config = load_config(None, USES_MINE)
        (package,) = outside_packages(config)
        assert (package.name, package.version, len(package.digest)) == ("my-fed", version, 64)
        assert run_fingerprint(RunConfig()) == plain, "who does not use it has the same as before"
        assert run_fingerprint(config) not in seen, "another version, and other code of the same version, is another"
        seen.add(run_fingerprint(config))
        uninstall(site)


def test_the_same_code_has_one_digest_installed_or_being_edited(install: Install) -> None:
    config, found = load_config(None, USES_MINE), []
    for edited in (False, True):
        site = install("my-fed", "1", MINE, files(), edited)
        found.append(outside_packages(config))
        uninstall(site)
    assert found[0] == found[1]


def test_a_module_without_a_package_and_one_that_lies_elsewhere(install: Install) -> None:
    config, digests = load_config(None, USES_MINE), []
    for how, edited in (("as ever", False), ("as ever", True), ("otherwise", True)):
        parts = {"aggregators": {"mine": "my_fed_rule:Mine"}}
        site = install("my-fed", "1", parts, {"my_fed_rule.py": RULE.format(how=how)}, edited)
        digests.append(outside_packages(config)[0].digest)
        uninstall(site)
    assert digests[0] == digests[1] != digests[2]


def test_a_metric_of_a_third_package_counts_with_the_suite_that_uses_it(install: Install) -> None:
    metric = "from oblivion.metrics.probability import Probability\n\n\nclass Share(Probability):\n    pass\n"
    suite = (
        "from a_metric import Share\nfrom oblivion.metrics.suites.tofu import Tofu\n\n\n"
        "class Mine(Tofu):\n    metrics = {**Tofu().metrics, 'share': Share('forget')}\n"
    )
    install("a-metric", "3", {"metrics": {"share": "a_metric:Share"}}, {"a_metric.py": metric})
    install("broken", "1", {"metrics": {"unused": "not_there:X"}}, {})
    install("a-suite", "1", {"suites": {"mine": "a_suite:Mine"}}, {"a_suite.py": suite})
    packages = outside_packages(load_config(None, ["evaluate.suite=mine"]))
    assert [(package.name, package.version) for package in packages] == [("a-metric", "3"), ("a-suite", "1")]


BROKEN = {
    "no_module": ("not_there:X", "cannot be loaded: ModuleNotFoundError: No module named 'not_there'"),
    "no_attribute": ("my_fed:nothing", "cannot be loaded: AttributeError"),
    "leaves": ("my_leaves:X", "cannot be loaded: SystemExit"),
    "lines": ("my_lines:X", "cannot be loaded: RuntimeError: one"),
    "number": ("my_fed:NUMBER", "is not valid: my_fed:NUMBER is neither a class nor a function"),
    "no_reference": ("!!", "cannot be loaded: AttributeError"),
    "no_rule": ("my_fed:Empty", "is not valid: it has no init, no step, no needed"),
}


def install_broken(install: Install) -> None:
    content = {
        "my_fed/__init__.py": 'NUMBER = 3\n\n\nclass Empty:\n    """Nothing."""\n',
        "my_leaves.py": "import sys\n\nsys.exit(3)\n",
        "my_lines.py": "raise RuntimeError('one\\ntwo')\n",
    }
    install("my-fed", "0.1", {"aggregators": {name: value for name, (value, _) in BROKEN.items()}}, content)


def test_a_broken_package_breaks_no_list(install: Install) -> None:
    _, before, _ = oblivion("list", "aggregators", "--json")
    install_broken(install)
    code, out, err = oblivion("list", "aggregators", "--json")
    described = json.loads(out)
    assert code == 0 and err == ""
    assert {name: text for name, text in described.items() if name not in BROKEN} == json.loads(before)
    for name, (_, words) in BROKEN.items():
        if name != "no_rule":
            assert words in described[name] and described[name].endswith("from package my-fed 0.1")
    assert described["no_rule"] == "Nothing. (from package my-fed 0.1)"
    code, out, err = oblivion("list", "aggregators")
    assert code == 0 and len(out.splitlines()) == len(described)


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_part_is_one_line_for_who_uses_it_and_nothing_for_others(install: Install, name: str) -> None:
    install_broken(install)
    check_names(RunConfig())
    code, out, err = oblivion("run", "demo", "--set", f"federation.aggregator={name}")
    assert code == 3 and out == "" and err.count("\n") == 1
    assert f"aggregator '{name}'" in err and BROKEN[name][1] in err


def test_two_packages_with_one_name(install: Install) -> None:
    install("my-fed", "0.1", MINE, files())
    install("other", "2", {"aggregators": {"mine": "other:X", "fedavg": "other:X"}}, {"other.py": "X = dict\n"})
    code, out, _ = oblivion("list", "aggregators", "--json")
    described = json.loads(out)
    assert code == 0 and described["fedadam"]
    for name in ("mine", "fedavg"):
        assert "registered twice" in described[name] and "package other 2" in described[name]
        with pytest.raises(ConfigError, match=f"aggregator '{name}' is registered twice.*uninstall one"):
            check_names(load_config(None, [f"federation.aggregator={name}"]))
    check_names(load_config(None, ["federation.aggregator=fedadam"]))


@pytest.mark.parametrize("name", ["../up", "a/b", "two words", "\x1b[31mred", ".hidden", "x" * 65])
def test_a_name_that_is_no_name(install: Install, name: str) -> None:
    install("my-fed", "0.1", {"aggregators": {name: "my_fed.rules:Mine"}}, files())
    code, out, _ = oblivion("list", "aggregators")
    assert code == 0 and "a name is up to 64 letters" in out and "\x1b" not in out
    with pytest.raises(OblivionError, match="a name is up to 64 letters"):
        check_names(
            RunConfig().model_copy(
                update={"federation": RunConfig().federation.model_copy(update={"aggregator": name})}
            )
        )


@pytest.mark.parametrize(
    ("kind", "setting"),
    [("templates", "data.template"), ("objectives", "forget.methods.local.objective"), ("schemes", "lora.scheme")],
)
def test_a_function_that_makes_no_part(install: Install, kind: str, setting: str) -> None:
    install("my-fed", "0.1", {kind: {"mine": "my_fed:make"}}, {"my_fed.py": "def make(ranks=None):\n    return 3\n"})
    with pytest.raises(InputError, match="'mine' is not valid: it has no"):
        check_names(load_config(None, [f"{setting}=mine", "forget.client=client-1"]))


@pytest.mark.parametrize(
    ("kind", "setting", "function", "message"),
    [
        ("datasets", "data.name", "def make(data):\n    return 3\n", "it takes no clients, no seed"),
        ("partitions", "data.partition", "def make(samples, *, clients):\n    return 3\n", "it takes no seed"),
        ("datasets", "data.name", "def make(data, *, clients, seed):\n    return 3\n", "it returns no oblivion"),
        ("partitions", "data.partition", "def make(rows, *, clients, seed):\n    return 3\n", "it returns no mapping"),
    ],
)
def test_a_function_that_takes_or_returns_something_else_than_such_a_part(
    install: Install, kind: str, setting: str, function: str, message: str
) -> None:
    install("my-fed", "0.1", {kind: {"mine": "my_fed:make"}}, {"my_fed.py": function})
    with pytest.raises(InputError, match=f"'mine' is not valid: {message}"):
        resolve(load_config(None, [f"{setting}=mine"]))


def test_doctor_names_the_parts_of_others(install: Install) -> None:
    assert json.loads(oblivion("doctor", "--json")[1])["outside parts"] == "none"
    install("my-fed", "0.1", {"aggregators": {"mine": "my_fed.rules:Mine", "gone": "nowhere:X"}}, files())
    code, out, _ = oblivion("doctor", "--json")
    said = json.loads(out)["outside parts"]
    assert code == 0 and said.startswith("package my-fed 0.1: ") and "aggregator mine" in said
    assert "aggregator 'gone' cannot be loaded: ModuleNotFoundError" in said


def fingerprint_of(*folders: Path) -> str:
    code = "from oblivion.provenance import code_fingerprint; print(code_fingerprint())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=folders[0],
        env={"PYTHONPATH": ":".join(map(str, folders))},
    )
    return done.stdout.strip()


def copy(packages: tuple[str, ...], to: Path) -> Path:
    for package in packages:
        shutil.copytree(ROOT / package, to / package, ignore=shutil.ignore_patterns("__pycache__", "tiny"))
    return to


@pytest.mark.parametrize(
    "changed",
    [
        "oblivion/federation/host.py",
        "oblivion/federation/rounds.py",
        "strategies/grid_hosts.py",
        "oblivion/selection.py",
    ],
)
def test_the_fingerprint_sees_every_module_that_decides(changed: str, tmp_path: Path) -> None:
    there = copy(OWN, tmp_path / "copy")
    before = fingerprint_of(there)
    assert before == code_fingerprint()
    text = (there / changed).read_bytes()
    (there / changed).write_bytes(text.replace(b"\n", b"\r\n"))
    assert fingerprint_of(there) == before, "ends of lines mean nothing to Python"
    (there / changed).write_bytes(text + b"\nX = 1\n")
    assert fingerprint_of(there) != before


def test_the_fingerprint_is_that_of_what_is_imported(tmp_path: Path) -> None:
    """As in a Flower app: clients, server and strategies come from its bundle, the library from what is installed."""
    bundle = copy(tuple(name for name in OWN if name != "oblivion"), tmp_path / "bundle")
    assert fingerprint_of(bundle, ROOT) == code_fingerprint()
    (bundle / "strategies/grid_hosts.py").write_text("# another way to the hosts\n")
    assert fingerprint_of(bundle, ROOT) != code_fingerprint()


def test_an_evaluation_names_the_packages_of_its_template(install: Install, micro_model: Path, tmp_path: Path) -> None:
    import oblivion as ob

    template = "from oblivion.data.templates.plain import PlainTemplate\n\n\nclass Mine(PlainTemplate):\n    pass\n"
    rows = [
        {"question": f"{i}?", "answer": f"{i}.", "paraphrased_answer": "x", "perturbed_answer": ["y"]}
        for i in range(400)
    ]
    for name in (
        "forget10_perturbed",
        "retain_perturbed",
        "real_authors_perturbed",
        "world_facts_perturbed",
        "holdout10",
    ):
        (tmp_path / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    options = {"data": str(tmp_path), "limit": 1, "max_new_tokens": 1}
    plain = ob.evaluate(str(micro_model), **options)["manifest"]
    assert plain["packages"] == [] and plain["code_fingerprint"] == code_fingerprint()
    install("my-fed", "4", {"templates": {"mine": "my_fed:Mine"}}, {"my_fed.py": template})
    mine = ob.evaluate(str(micro_model), template="mine", **options)["manifest"]
    assert [package["version"] for package in mine["packages"]] == ["4"]
    assert mine["code_fingerprint"] != plain["code_fingerprint"]
