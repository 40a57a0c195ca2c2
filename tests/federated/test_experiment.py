"""Runs from TOML files: what is refused and how, what is made of each section, and whole runs."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import planc
from planc.cli import app
from planc.errors import DataError, InputError, PlancError
from runtime import VirtualWorker
from runtime.errors import RoundFailed
from runtime.federated import FedAdam, FedAvg, FedYogi, events, robust, sampling
from runtime.federated.events import Event, RoundDone
from runtime.federated.experiment import command, document, keys
from runtime.federated.experiment import sections as S
from runtime.federated.experiment import strategies as T
from runtime.federated.experiment.assembly import LoadPlan, Plans, check, make_plans
from runtime.federated.experiment.command import dry_run, run
from runtime.federated.experiment.data import Data
from runtime.federated.experiment.engines import Engine
from runtime.federated.experiment.file import Experiment, ExperimentError, Loaded, load, parse
from runtime.federated.experiment.models import Kind, judging, make, metrics, training
from runtime.federated.experiment.toml import dumps
from runtime.federated.watch import read_lines
from tests.cli.golden import REGENERATE
from tests.network.serving import over

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "experiments.md"
EXAMPLES = sorted((ROOT / "examples" / "experiment").glob("*.toml"))
WHERE = Path("exp.toml")


def said(text: str, *overrides: str) -> str:
    with pytest.raises(ExperimentError) as error:
        check(parse(text, WHERE, overrides))
    return str(error.value)


# -- reading


@pytest.mark.parametrize(
    "text",
    [f"a = {'[' * 100_000}", f"a = {'{a=' * 50_000}", f"[{'a.' * 20_000}b]", f"[run]\nrounds = {'1' * 5000}"],
)
def test_a_file_that_means_harm_is_refused_like_any_other(text: str) -> None:
    assert "exp.toml:1" in said(text)


def test_an_empty_file_is_an_experiment() -> None:
    assert parse("", WHERE).experiment == Experiment()


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (
            "[client]\nlr = 1\nmomentun = 0.9\n",
            (),
            ["exp.toml:3:1", "client.momentun", "did you mean 'momentum'?"],
        ),
        ("[cleint]\nlr = 1\n", (), ["exp.toml:1:2", "this table is not known", "did you mean 'client'?"]),
        (
            '[client]\noptimizer = "adam"\nmomentum = 0.9',
            (),
            ["exp.toml:3:1", "where optimizer is 'adam'", "beta1"],
        ),
        ("[client]\n  lr = -1", (), ["exp.toml:2:3", "expected float > 0.0", "it is -1"]),
        ('[run]\nrounds = "ten"', (), ["exp.toml:2:1", "run.rounds: expected int, got str", "'ten'"]),
        ('[sampling]\nkind = "unifrm"', (), ["exp.toml:2:1", "'by-weight'", "did you mean 'uniform'?"]),
        ('[sampling]\nkind = "uniform"', (), ["exp.toml:1:2", "the key 'count' has to be given"]),
        ("[model]\nhidden = [8, 0]", (), ["exp.toml:2:1", "model.hidden", "[8, 0]"]),
        ("client = 3", (), ["exp.toml:1:1", "expected a table [client], got 3"]),
        (
            "[client.schedule]\nkind = 'step'\nevry = 2",
            (),
            ["exp.toml:3:1", "client.schedule.evry", "'every'"],
        ),
        ("[client]\nlr = ", (), ["exp.toml:2:6", "this is not TOML"]),
        ("[rounds]\ndeadline = nan", (), ["exp.toml:2:1", "rounds.deadline"]),
        ("", ("client.lr",), ["--set:1:1", "expected TABLE.KEY=VALUE"]),
        ("", ("lr=3",), ["--set:1:1", "expected TABLE.KEY=VALUE"]),
        ("", ("clinet.lr=3",), ["--set:1:1", "clinet: this table is not known", "did you mean 'client'?"]),
        ("[client]\nlr = 1", ("client.lr=fast",), ["--set:1:1", "expected float, got str", "client.lr=fast"]),
        ("[client]\nlr = 1", ("client.lr.x=1",), ["--set:1:1", "client.lr is no table"]),
        ("[async]\nbuffer = 3\n[mean]\nkind = 'median'", (), ["exp.toml:4:1", "[async] trains without them"]),
        ("[async]\n[rounds]\nquorum = 0.5", (), ["exp.toml:3:1", "[async] trains without them"]),
        (
            "[model]\nkind = 'plan'\nplan = 'x.planc'\n[client]\nepochs = 2",
            (),
            ["exp.toml:5:1", "leave it out"],
        ),
        (
            "[run]\nrounds = 1\n[client.schedule]\nkind = 'cosine'",
            (),
            ["exp.toml:3:", "Cosine: rounds must be"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(
    text: str, overrides: Sequence[str], expected: list[str]
) -> None:
    message = said(text, *overrides)
    assert [part for part in expected if part not in message] == [], message


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ExperimentError, match="not text in UTF-8"):
        load(tmp_path / "binary.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ExperimentError, match="larger than"):
        load(tmp_path / "large.toml")


def test_overrides_go_before_the_file() -> None:
    text = "[client]\nlr = 1.0\n[workers]\ncount = 3"
    overrides = ["client.lr=0.05", "workers.engine=ray", "workers.count=5", "client.schedule.kind=step"]
    loaded = parse(text, WHERE, [*overrides, "client.schedule.every = 2", "run.output=runs/a b"])
    assert loaded.experiment.client == S.Sgd(lr=0.05, schedule=S.Step(every=2))
    assert loaded.experiment.workers == S.Ray(count=5)
    assert loaded.experiment.run.output == "runs/a b"
    assert "client.schedule.every" in loaded.given


def test_the_settings_as_toml_are_the_same_experiment() -> None:
    text = (
        "[client]\noptimizer = 'adamw'\n[client.schedule]\nkind = 'cosine'\n[async]\n"
        "[workers]\nengine = 'grpc'\naddresses = ['grpc://a:1', 'unix:/ü \"x\"\\\\']\n[stop]\ntarget = 1e-9"
    )
    experiment = parse(text, WHERE).experiment
    assert parse(dumps(keys.plain(experiment)), WHERE).experiment == experiment
    assert tomllib.loads(dumps({"a": {"b": {"c": ["\x7f\n", True, 0.1]}}, "d": {}})) == {
        "a": {"b": {"c": ["\x7f\n", True, 0.1]}},
        "d": {},
    }


# -- what the page says


def test_the_page_is_made_from_the_sections() -> None:
    text = PAGE.read_text(encoding="utf-8")
    if REGENERATE:
        PAGE.write_text(document.page(text), encoding="utf-8")
    expected = "run: python -m runtime.federated.experiment.document docs/experiments.md"
    assert document.page(text) == text or REGENERATE, expected


def test_every_key_has_its_meaning_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for table in keys.tables(Experiment):
        assert f"### [{'.'.join(table.at)}]" in page
        assert table.about
        for key in table.keys:
            assert key.meaning, f"{table.at} {key.name}: say what it means in the docstring"
            assert f"| `{key.name}` |" in page


def test_sections_say_nothing_of_keys_that_they_do_not_have() -> None:
    for module in (S, T):
        for cls in vars(module).values():
            if isinstance(cls, type) and issubclass(cls, keys.Section):
                extra = keys.meanings(cls).keys() - set(cls.__struct_fields__)
                assert not extra, f"{cls.__name__} has no {extra}"


def test_the_page_shows_errors_as_they_are() -> None:
    assert said("[client]\nlr = 1\nmomentun = 0.9\n") in PAGE.read_text(encoding="utf-8")


# -- what becomes of sections


def test_sections_make_what_they_name() -> None:
    text = (
        "[server]\nstrategy = 'fedadam'\nlr = 0.5\nbeta2 = 0.5\n[sampling]\nkind = 'poisson'\nrate = 0.25\n"
        "[mean]\nkind = 'trimmed'\nfraction = 0.2"
    )
    experiment = parse(text, WHERE).experiment
    assert experiment.server.make() == FedAdam(lr=0.5, beta2=0.5)
    assert experiment.sampling.make() == sampling.Poisson(0.25)
    assert experiment.mean.make() == robust.TrimmedMean(0.2)


def test_defaults_are_those_of_what_they_make() -> None:
    """Else the same name would be another thing in a file and in Python."""
    for section in (
        T.Average(),
        T.Momentum(),
        T.ServerAdagrad(),
        T.ServerAdam(),
        T.ServerYogi(),
        T.MeanTrimmed(),
    ):
        assert section.make() == section.makes()
    assert T.Average().make() == FedAvg()
    assert T.ServerYogi().make() == FedYogi()


KINDS = {
    "classes": Kind((6,), (), 3, (torch.float32, torch.int64)),
    "numbers": Kind((6,), (2,), None, (torch.float32, torch.float32)),
}


@pytest.mark.parametrize("client", [S.Sgd(momentum=0.5), S.Adam(mu=0.1)], ids=["sgd", "fedprox"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_what_trains_is_what_is_judged(client: S.Client, kind: Kind) -> None:
    """The plan that judges takes the state of the one that trains, and sees that it got better."""
    model = S.Mlp(hidden=(5,))
    network, measure = make(model, kind, 0), metrics(model, kind)
    epoch = training(network, measure, client, kind, None)
    judge = judging(network, measure, client, kind)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator)
    y = x[:, :3].argmax(1) if kind.classes else x[:, :2] * 2
    state = {port.path: epoch.state[port.path] for port in judge.graph.state()}
    before = judge.with_state(state)(x, y)
    for _ in range(20):
        epoch(x, y)
    after = judge.with_state({path: epoch.state[path] for path in state})(x, y)
    assert after["loss"] < before["loss"]
    with torch.no_grad():
        assert before["loss"] == pytest.approx(float(measure(make(model, kind, 0)(x), y)["loss"]), rel=1e-5)
    assert set(after) == ({"loss", "accuracy"} if kind.classes else {"loss"})


def test_networks_come_from_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    a, b, c = (make(S.Linear(), KINDS["classes"], seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [next(network.parameters()) for network in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda: make(S.Cnn(), KINDS["classes"], 0), "images of shape"),
        (lambda: make(S.Linear(outputs=2), KINDS["classes"], 0), "3 classes"),
        (lambda: make(S.Linear(), Kind((6,), (), 0, (torch.float32, torch.int64)), 0), "give outputs"),
        (lambda: metrics(S.Linear(loss="mse"), KINDS["classes"]), "targets that are numbers"),
        (lambda: metrics(S.Linear(loss="cross_entropy"), KINDS["numbers"]), "whole numbers"),
    ],
)
def test_data_that_does_not_fit_the_network_is_refused(do: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        do()


# -- whole runs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: with 200 rows of 3 classes that a linear layer can tell apart, and small.toml."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 6)).astype(np.float32)
    y = (x @ draw.normal(size=(6, 3))).argmax(1)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    (tmp_path / "small.toml").write_text(SMALL)
    monkeypatch.setattr(command, "make_plans", plans_once)
    return tmp_path


_CAPTURED: dict[Any, Plans] = {}


def plans_once(loaded: Loaded, data: Data, load_plan: LoadPlan) -> Plans:
    """As `make_plans`, but what is captured alike is captured once: it takes most of a small run's time."""
    it = loaded.experiment
    if isinstance(it.model, S.Saved):
        return make_plans(loaded, data, load_plan)
    key = (it.model, it.client, it.run.seed, it.run.rounds, it.evaluation.every, data.kind)
    if key not in _CAPTURED:
        _CAPTURED[key] = make_plans(loaded, data, load_plan)
    return _CAPTURED[key]


SMALL = """
[run]
rounds = 3
[data]
source = "file"
path = "data.npz"
clients = 8
held_out = 40
[model]
kind = "linear"
[checkpoints]
every = 1
[watch]
progress = false
"""


def go(*overrides: str, resume: bool = False) -> dict[str, torch.Tensor]:
    done = run(Path("small.toml"), overrides, resume=resume, load_plan=planc.load)
    return load_file(done.folder / "model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[path], b[path]) for path in a)


def rounds_of(folder: Path) -> list[int]:
    return [event.number for event in read_lines(folder / "events.jsonl") if isinstance(event, RoundDone)]


def test_a_run_leaves_its_folder(folder: Path) -> None:
    model = go("run.seed=3")
    out = folder / "runs" / "small"
    assert {path.name for path in out.iterdir()} == {
        *("checkpoints", "events.jsonl", "experiment.toml", "model.safetensors", "report.html")
    }
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    network.load_state_dict(model)
    told = read_lines(out / "events.jsonl")
    assert rounds_of(out) == [1, 2, 3]
    assert isinstance(told[0], events.RunStarted)
    assert told[0].config["run.seed"] == 3
    assert told[0].config["client.optimizer"] == "sgd"
    assert parse((out / "experiment.toml").read_text(), WHERE).experiment.run.seed == 3
    assert "run.seed" in (out / "report.html").read_text(encoding="utf-8")


def test_the_evaluation_is_what_the_model_gives_on_the_rows_that_were_kept(folder: Path) -> None:
    done = run(Path("small.toml"), ["evaluation.batch_size=7"], load_plan=planc.load)
    whole = run(Path("small.toml"), ["run.output=b"], load_plan=planc.load)
    first, second = (dict(result.result.rounds[-1].evaluation) for result in (done, whole))
    assert first == pytest.approx(second)
    assert set(first) == {"loss", "accuracy"}


def test_a_folder_with_a_run_is_not_overwritten_by_accident(folder: Path) -> None:
    first = go("run.rounds=1")
    with pytest.raises(ExperimentError, match="has the results of a run in it") as error:
        go()
    assert "run.overwrite=true" in str(error.value)
    assert equal(load_file("runs/small/model.safetensors"), first)
    go("run.overwrite=true")
    assert rounds_of(folder / "runs" / "small") == [1, 2, 3]


def test_a_resumed_run_gives_the_same_model_and_lines(folder: Path) -> None:
    whole = go("run.output=whole")
    go("run.rounds=1")
    assert equal(go(resume=True), whole)
    assert rounds_of(folder / "runs" / "small") == [1, 2, 3]
    assert "Resumed before round 2" in (folder / "runs/small/report.html").read_text(encoding="utf-8")


SETTINGS: dict[str, list[str]] = {
    "dirichlet": ["data.partition=dirichlet", "data.alpha=0.3"],
    "adam, kept": ["client.optimizer=adam", "client.state=kept"],
    "fedprox, schedule": ["client.mu=0.1", "client.schedule.kind=step", "client.schedule.every=1"],
    "median, poisson": ["mean.kind=median", "sampling.kind=poisson", "sampling.rate=0.9"],
    "clients": ["evaluation.on=both", "evaluation.clients=3", "server.strategy=fedyogi"],
    "async": ["async.buffer=3", "async.concurrency=4"],
    "mlp": ["model.kind=mlp", "model.hidden=[4, 4]", "client.epochs=2"],
    "tensorboard": ["watch.tensorboard=true"],
}


@pytest.mark.parametrize("overrides", SETTINGS.values(), ids=list(SETTINGS))
def test_settings_run_and_learn(folder: Path, overrides: list[str]) -> None:
    go("run.rounds=2", *overrides)
    (*_, last) = [e for e in read_lines("runs/small/events.jsonl") if isinstance(e, RoundDone)]
    assert last.evaluation["loss"] < 1.5
    if "evaluation.on=both" in overrides:
        assert last.evaluation["clients.loss"] < 1.5
    if "watch.tensorboard=true" in overrides:
        assert list(Path("runs/small/tensorboard").iterdir())


def test_rules_end_a_run(folder: Path) -> None:
    go("stop.metric=loss", "stop.mode=min", "stop.target=100")
    assert rounds_of(folder / "runs" / "small") == [1]


def test_the_number_of_workers_and_grpc_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = go("run.output=one", "workers.count=1")
    with over("grpc"):
        assert equal(go("run.output=grpc", "workers.count=3"), here)
        assert (folder / "grpc" / "report.html").exists()


def test_a_run_that_fails_leaves_lines_and_page(folder: Path) -> None:
    save_file({"x": torch.full((200, 6), float("nan")), "y": torch.arange(200) % 3}, "data.safetensors")
    with pytest.raises(RoundFailed, match="round 1"):
        go("data.path=data.safetensors")
    told: list[Event] = read_lines("runs/small/events.jsonl")
    assert isinstance(told[-1], events.RunDone)
    assert "Rounds that failed" in (folder / "runs/small/report.html").read_text(encoding="utf-8")


def test_a_plan_of_ones_own_is_trained(folder: Path) -> None:
    network = make(S.Linear(), KINDS["classes"], 0)
    measure = metrics(S.Linear(), KINDS["classes"])
    training(network, measure, S.Sgd(), KINDS["classes"], None).save("mine.planc")
    judging(network, measure, S.Sgd(), KINDS["classes"]).save("judge.planc")
    (folder / "own.py").write_text("import planc\nepoch = planc.load('mine.planc')\n")
    own = ["model.kind=plan", "model.plan=mine.planc"]
    model = go(*own)
    assert model.keys() == {"1.weight", "1.bias"}
    assert not torch.equal(model["1.weight"], network[1].weight)
    assert equal(go("run.output=built-in"), model), "it is the plan that the file would have made"

    sets = [
        *("--set", "model.kind=plan", "--set", "model.plan=own.py:epoch"),
        *("--set", "model.evaluation=judge.planc", "--set", "run.output=python"),
    ]
    result = call("run", "small.toml", *sets)
    assert "evaluation accuracy" in result.stdout, result.output
    assert equal(load_file("python/model.safetensors"), model)

    with pytest.raises(ExperimentError, match="takes no learning rate"):
        go(*own, "client.lr=0.1", "run.output=b")
    with pytest.raises(ExperimentError, match=r"give model\.evaluation"):
        go(*own, "evaluation.every=2", "run.output=b")
    with pytest.raises(InputError, match="no file"):
        go("model.kind=plan", "model.plan=other.planc", "run.output=b")
    assert not Path("b").exists(), "what cannot begin leaves nothing"


def test_data_at_workers_is_found_by_its_tags(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = [VirtualWorker(name) for name in ("north", "south")]
    for rows, worker in enumerate(workers, 20):
        x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows))
        worker.worker.add(x, private=False, tags=("#x",))
        worker.worker.add(x[:, :3].argmax(1), private=False, tags=("#y",))

    @contextmanager
    def started(section: object, folder: Path) -> Generator[Engine]:
        yield Engine(workers)

    monkeypatch.setattr(command, "started", started)
    text = "[data]\nsource = 'workers'\n[model]\nkind = 'linear'\noutputs = 3\n[watch]\nprogress = false\n"
    (folder / "there.toml").write_text(text + "[evaluation]\non = 'clients'\n[run]\nrounds = 2\n")
    assert dry_run(Path("there.toml"), load_plan=planc.load).rows == (20, 21)
    done = run(Path("there.toml"), load_plan=planc.load)
    assert done.result.rounds[-1].weight == 41
    assert set(done.result.rounds[-1].evaluation) == {"clients.loss", "clients.accuracy"}
    with pytest.raises(DataError, match="expected one tensor with the tag '#z', got 0"):
        run(Path("there.toml"), ["data.x=#z", "run.output=b"], load_plan=planc.load)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.path=none.npz"], "there is no such file"),
        (["data.path=small.toml"], "expected a file .npz or .safetensors"),
        (["data.x=z"], "there is no tensor 'z'; it has x, y"),
        (["data.x=y"], "floating point"),
        (["data.held_out=200"], "none would be left"),
        (["data.test_x=x"], "given together"),
        (["data.clients=1000"], "1000 clients"),
    ],
)
def test_data_that_cannot_be_used_is_refused(folder: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        go(*overrides)


def test_damaged_data_is_refused(folder: Path) -> None:
    for name in ("a.npz", "a.safetensors"):
        (folder / name).write_bytes(b"PK\x03\x04 and no more")
        with pytest.raises(DataError, match="cannot be read as"):
            go(f"data.path={name}", f"run.output={name}-out")


def test_a_dry_run_trains_and_writes_nothing(folder: Path) -> None:
    outline = dry_run(Path("small.toml"), ["workers.count=3"], load_plan=planc.load)
    assert not (folder / "runs").exists()
    assert (outline.messages, outline.numbers, outline.model_bytes) == (3, 21, 84)
    assert (outline.bytes_out, outline.bytes_in) == (3 * 84, 3 * 21 * 8)
    assert sum(outline.rows) == 160
    lines = "\n".join(outline.lines())
    assert parse(lines, WHERE).experiment == load(Path("small.toml"), ["workers.count=3"]).experiment
    assert "nothing was trained" in lines
    each = dry_run(Path("small.toml"), ["mean.kind=median"], load_plan=planc.load)
    assert each.bytes_in == 8 * 84


def test_messages_of_a_round_are_those_of_the_outline(folder: Path) -> None:
    expected = dry_run(Path("small.toml"), load_plan=planc.load).messages
    go()
    done = [e for e in read_lines("runs/small/events.jsonl") if isinstance(e, RoundDone)]
    assert done[-1].messages == expected


# -- the command


def call(*args: str) -> Any:
    result = CliRunner().invoke(app, list(args), prog_name="planc")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_planc_run_runs_a_file(folder: Path) -> None:
    result = call("run", "small.toml", "--set", "run.rounds=1", "--set", "watch.progress=true")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == "1 round: 1 rounds are done"
    assert result.stdout.splitlines()[-1] == "wrote runs/small/model.safetensors"
    assert call("run", "small.toml", "--resume").exit_code == 0
    assert rounds_of(folder / "runs" / "small") == [1, 2, 3]
    assert "# nothing was trained" in call("run", "small.toml", "--dry-run").stdout


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["small.toml", "--seed", "0"], 2, "this option is for plans"),
        (["small.toml", "--input", "x=y.npy"], 2, "this option is for plans"),
        (["x.planc", "--resume"], 2, "for runs from .toml files"),
        (["x.planc", "--set", "run.rounds=1"], 2, "for runs from .toml files"),
        (["small.toml", "--set", "run.round=1"], 3, "did you mean 'rounds'?"),
        (["none.toml"], 8, "none.toml"),
    ],
)
def test_planc_run_refuses_what_does_not_fit(folder: Path, args: list[str], code: int, message: str) -> None:
    result = call("run", *args)
    assert result.exit_code == code, result.output
    assert message in result.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run_and_learn(path: Path, tmp_path: Path) -> None:
    overrides = [f"run.output={tmp_path}/out", "watch.progress=false"]
    done = run(path, overrides, load_plan=planc.load)
    assert done.result.rounds[-1].evaluation["accuracy"] > 0.85


def test_there_is_an_example() -> None:
    assert EXAMPLES


def test_errors_of_a_file_are_planc_errors() -> None:
    assert issubclass(ExperimentError, PlancError)
