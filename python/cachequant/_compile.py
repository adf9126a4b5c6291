"""Compilation."""

import json
import os

from . import _cachequant
from ._arrays import contiguous

_READING = (
    "dims",
    "shapes",
    "sample_input",
    "time_input",
    "prediction_output",
    "sample_channel",
    "per_step",
    "per_request",
    "with_models",
    "wires",
)


def compile(model, out, *, accept=False, force=False, progress=None, **options):
    """Compiles the sampling loop of a model and writes it as an artifact.

    Parameters
    ----------
    model : path
        An `.onnx` file, or the directory of an exported pipeline; its `scheduler_config.json` is
        read.
    out : path
        The artifact to write, usually `*.cq`.
    accept : bool
        Write the artifact even where it is further from the float loop than it may be.
    force : bool
        Replace a file that is there.
    progress : callable, optional
        Called as `progress(phase, done, total)` while the loop is calibrated, quantized and
        measured. Returning `False` cancels.
    **options
        The long options of `cqc compile`, with underscores, and how the model is read:

        * the loop: `steps`, `sampler`, `scheduler_config` (path or dictionary), `prediction`,
          `guidance`, `null_label`, `null_cond`, `any_steps`, `trust`, …
        * caching: `interval`, `schedule`, `cut`, `cache_fit`, `correct`
        * quantization: `quant` (`"none"`, `"bf16"`, `"w8a8"`, `"w4a8"`), `keep_float`,
          `target_psnr`, …
        * the calibration set: `calib_samples`, `calib_noise`, `labels`, `cond` (a dictionary of
          arrays, paths or numbers), `seed`
        * the model: `dims` and `shapes` (dictionaries), `sample_input`, `time_input`,
          `prediction_output`, `sample_channel`, `per_step`, `per_request` (lists of names),
          `with_models` (list of paths), `wires` (list of pairs)

    Returns
    -------
    dict
        What was decided: `sampler`, `steps`, `caching`, `quant`, `reading`; `psnr` is what held-out
        samples of the compiled loop reach to the float loop, in decibels, and `warnings` is what the
        importer found odd.

    Raises
    ------
    ValueError
        Options that contradict each other or that do not exist.
    ModelError
        A model that cannot be read.
    CompileError
        A model that cannot be compiled so; `BelowFloor` where only its quality is in the way.
    Cancelled
        `progress` returned `False`.
    """
    reading = {key: options.pop(key) for key in _READING if key in options}
    for key in ("with_models",):
        if isinstance(reading.get(key), (str, os.PathLike)):
            reading[key] = [reading[key]]
    recipe, arrays = {}, {}
    for key, value in options.items():
        if value is None:
            continue
        key = key.replace("_", "-")
        if key in ("cond", "null-cond"):
            arrays[key] = {name: _array(array) for name, array in value.items()}
        elif key == "calib-noise":
            arrays[key] = _array(value)
        else:
            recipe[key] = os.fspath(value) if isinstance(value, os.PathLike) else value
    told = _cachequant.compile(
        os.fspath(model),
        os.fspath(out),
        json.dumps(recipe),
        arrays,
        reading,
        accept,
        force,
        progress,
    )
    return json.loads(told)


def _array(value):
    if isinstance(value, (str, os.PathLike, int, float)):
        return value
    return contiguous(value)
