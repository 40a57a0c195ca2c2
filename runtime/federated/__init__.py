"""Federated training: rounds of local work at the workers, and what is made of their results."""

from runtime.federated.averaging import FederatedAveraging, Round

__all__ = ["FederatedAveraging", "Round"]
