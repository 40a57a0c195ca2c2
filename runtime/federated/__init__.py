"""Federated training: rounds of local work at the workers, and what is made of their results."""

from runtime.federated.asynchronous import Buffered
from runtime.federated.averaging import FederatedAveraging, Round
from runtime.federated.checkpoints import Checkpoints
from runtime.federated.evaluation import Evaluation
from runtime.federated.federation import Federation
from runtime.federated.population import Population
from runtime.federated.proximal import fedprox, unwrapped
from runtime.federated.result import Result
from runtime.federated.robust import Median, TrimmedMean, UniformMean, WeightedMean
from runtime.federated.sampling import ByWeight, Everyone, Poisson, Uniform
from runtime.federated.schedules import Constant, Cosine, Exponential, StepDecay
from runtime.federated.servers import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi
from runtime.federated.stopping import AfterRounds, AfterSeconds, Diverged, Patience, Target

__all__ = [
    "AfterRounds",
    "AfterSeconds",
    "Buffered",
    "ByWeight",
    "Checkpoints",
    "Constant",
    "Cosine",
    "Diverged",
    "Evaluation",
    "Everyone",
    "Exponential",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedYogi",
    "FederatedAveraging",
    "Federation",
    "Median",
    "Patience",
    "Poisson",
    "Population",
    "Result",
    "Round",
    "StepDecay",
    "Target",
    "TrimmedMean",
    "Uniform",
    "UniformMean",
    "WeightedMean",
    "fedprox",
    "unwrapped",
]
