from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

__version__: str

class Error(Exception): ...
class ModelError(Error): ...
class CompileError(Error): ...
class ArtifactError(Error): ...
class RequestError(Error): ...
class Cancelled(Error): ...

class BelowFloor(CompileError):
    psnr: float
    floor: float
    proposals: list[tuple[str, float]]

def compile(
    model: str | PathLike[str],
    out: str | PathLike[str],
    recipe: str,
    arrays: dict[str, Any],
    reading: dict[str, Any],
    accept: bool,
    force: bool,
    progress: Callable[[str, int, int], Any] | None,
) -> str: ...

class Artifact:
    @staticmethod
    def open(path: str | PathLike[str], map: bool) -> Artifact: ...
    @staticmethod
    def from_bytes(data: bytes) -> Artifact: ...
    def info(self) -> str: ...
    def open_loop(
        self,
        batch: int,
        threads: int | None = None,
        steps: int | None = None,
        timesteps: list[float] | None = None,
        guidance: float | None = None,
        device: str = "auto",
    ) -> Loop: ...

class Loop:
    @property
    def evaluations(self) -> int: ...
    def sample(
        self, given: dict[str, Any], progress: Callable[[int, int, int, int], Any] | None
    ) -> NDArray[np.float32]: ...
    def begin(self, conditions: dict[str, Any], evaluation: int) -> Trajectory: ...
    def set_condition(self, trajectory: Trajectory, name: str, value: Any) -> None: ...
    def predict(
        self, trajectory: Trajectory, input: NDArray[np.float32]
    ) -> NDArray[np.float32]: ...

class Trajectory: ...
