"""Compile diffusion and flow-matching models, and run what was compiled.

* `compile` makes an artifact (`.cq`) of an ONNX file or of the directory of an exported pipeline.
* `Denoiser` opens an artifact: `sample` runs its whole loop, and the object itself is a drop-in for
  `pipe.unet` or `pipe.transformer` of diffusers, whatever scheduler drives it.
* `export_onnx` exports a PyTorch model or the denoiser of a pipeline, so that `compile` takes it.
"""

from ._cachequant import (
    ArtifactError,
    BelowFloor,
    Cancelled,
    CompileError,
    Error,
    ModelError,
    RequestError,
    __version__,
)
from ._compile import compile
from ._denoiser import Denoiser
from ._export import export_onnx

__all__ = [
    "ArtifactError",
    "BelowFloor",
    "Cancelled",
    "CompileError",
    "Denoiser",
    "Error",
    "ModelError",
    "RequestError",
    "__version__",
    "compile",
    "export_onnx",
]
