"""Federated runs from TOML files: what they may say (docs/experiments.md), and how they are run."""

from runtime.federated.experiment.command import Finished, dry_run, run
from runtime.federated.experiment.describe import Outline
from runtime.federated.experiment.file import Experiment, ExperimentError, Loaded, load

__all__ = ["Experiment", "ExperimentError", "Finished", "Loaded", "Outline", "dry_run", "load", "run"]
