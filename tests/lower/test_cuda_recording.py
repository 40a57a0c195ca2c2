"""How a CUDA graph is captured: torch's own `torch.cuda.graph` runs, on a driver that stands for a device."""

from __future__ import annotations

import pytest
import torch

from planc.lower.graphs import CudaRecording


class Driver:
    """What torch.cuda needs of a device, without one: torch's own `torch.cuda.graph` runs on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.streams = 0
        self.current: object = "the caller's"
        driver = self

        class Stream:
            def __init__(self, _device: torch.device) -> None:
                driver.streams += 1
                self.cuda_stream = driver.streams % 32

            def wait_stream(self, _other: object) -> None:
                driver.log.append("wait")

        class Switch:
            """As torch.cuda.stream."""

            def __init__(self, stream: object) -> None:
                self.stream, self.before = stream, driver.current

            def __enter__(self) -> None:
                self.before, driver.current = driver.current, self.stream

            def __exit__(self, *_: object) -> None:
                driver.current = self.before

        class Graph:
            def capture_begin(self, *, capture_error_mode: str, **_rest: object) -> None:
                driver.log.append(f"begin {capture_error_mode}")

            def capture_end(self) -> None:
                driver.log.append("end")
                if "failed" in driver.log:
                    raise RuntimeError("operation failed due to a previous error during capture")

            def replay(self) -> None:
                driver.log.append("replay")

            def pool(self) -> tuple[int, int]:
                return 0, 7

        segments = [{"segment_pool_id": (0, pool), "total_size": 1000 * pool} for pool in (0, 7, 7)]
        for name, value in {
            "Stream": Stream,
            "stream": Switch,
            "CUDAGraph": Graph,
            "current_stream": lambda _: None,
            "memory_snapshot": lambda: segments,
            "synchronize": lambda: None,
            "empty_cache": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)


def test_a_cuda_graph_is_captured_as_torch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch)
    recording = CudaRecording(torch.device("cuda", 0))

    def run() -> list[torch.Tensor]:
        driver.log.append("run")
        assert driver.current != "the caller's"
        return [torch.ones(2)]

    (captured,) = recording.capture(run)
    assert torch.equal(captured, torch.ones(2))
    recording.replay()
    assert driver.log == ["wait", "begin thread_local", "run", "end", "replay"]
    assert recording.nbytes == 14_000


def test_a_capture_that_fails_is_ended_and_the_callers_stream_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver(monkeypatch)

    def run() -> list[torch.Tensor]:
        driver.log.append("failed")
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="previous error"):
        CudaRecording(torch.device("cuda", 0)).capture(run)
    assert driver.log == ["wait", "begin thread_local", "failed", "end"]
    assert driver.current == "the caller's"


def test_each_cuda_graph_has_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch)

    def recorded(device: int = 0) -> CudaRecording:
        made = CudaRecording(torch.device("cuda", device))
        made.capture(list)
        return made

    alive = [recorded() for _ in range(32)]
    assert driver.streams == 32
    with pytest.raises(RuntimeError, match="each of the device's 32 streams has a graph already"):
        recorded()
    other = recorded(device=1)
    del alive[5]
    alive.append(recorded())
    with pytest.raises(RuntimeError, match="has a graph already"):
        recorded()
    del other
