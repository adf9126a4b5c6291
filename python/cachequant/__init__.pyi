from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._cachequant import (
    ArtifactError as ArtifactError,
    BelowFloor as BelowFloor,
    Cancelled as Cancelled,
    CompileError as CompileError,
    Error as Error,
    ModelError as ModelError,
    RequestError as RequestError,
    __version__ as __version__,
)

def compile(
    model: str | PathLike[str],
    out: str | PathLike[str],
    *,
    accept: bool = False,
    force: bool = False,
    progress: Callable[[str, int, int], Any] | None = None,
    **options: Any,
) -> dict[str, Any]: ...
def export_onnx(
    model: Any,
    directory: str | PathLike[str],
    *,
    inputs: Mapping[str, Any] | None = None,
    size: int | tuple[int, int] | None = None,
    tokens: int | None = None,
    control: bool = False,
    opset: int = 17,
) -> Path: ...

class Denoiser:
    path: str | None
    info: dict[str, Any]
    config: Any
    dtype: Any
    device: Any
    timesteps: Sequence[float] | None
    def __init__(
        self,
        artifact: str | PathLike[str] | bytes,
        pipe: Any = None,
        *,
        threads: int | None = None,
        device: str = "auto",
    ) -> None: ...
    def attach(self, pipe: Any) -> None: ...
    def cache_context(self, name: str) -> AbstractContextManager[None]: ...
    def to(self, *args: Any, **kwargs: Any) -> Denoiser: ...
    def eval(self) -> Denoiser: ...
    def sample(
        self,
        n: int | None = None,
        *,
        seed: int = 0,
        noise: Any = None,
        labels: Sequence[int] | None = None,
        cond: Mapping[str, Any] | None = None,
        null_cond: Mapping[str, Any] | None = None,
        guidance: float | None = None,
        guidance_rescale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        steps: int | None = None,
        init: Any = None,
        strength: float | None = None,
        mask: Any = None,
        start: int | None = None,
        end: int | None = None,
        batch: int | None = None,
        progress: Callable[[int, int, int, int], Any] | None = None,
    ) -> NDArray[np.float32]: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
