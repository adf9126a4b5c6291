"""Compile diffusion and flow-matching models, and run the compiled artifacts.

* `export_onnx` exports a PyTorch model, or the denoiser of a diffusers pipeline, to ONNX.
* `compile` turns an ONNX file, or the directory of an exported pipeline, into an artifact (`.cq`).
* `Denoiser` opens an artifact. Its method `sample` runs the whole sampling loop. The object itself
  replaces `pipe.unet` or `pipe.transformer` of a diffusers pipeline, with any scheduler.
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
