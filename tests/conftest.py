"""For all tests: one thread an operation, so that two test processes fit two cores, and no time limits.

Times never gate a test: these machines are shared, and a slow one is not a failing one.
"""

from __future__ import annotations

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("planc", deadline=None)
hypothesis.settings.load_profile("planc")
