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
    """Compile the sampling loop of a model and write it to a file, the artifact.

    Parameters
    ----------
    model : path
        An `.onnx` file, or the directory of an exported pipeline. The `scheduler_config.json` of
        the directory is read.
    out : path
        The artifact to write, usually `*.cq`.
    accept : bool
        Write the artifact even if its quality is below the required PSNR to the float loop.
    force : bool
        Replace an existing file.
    progress : callable, optional
        Called as `progress(phase, done, total)` while the loop is calibrated, quantized and
        measured. Returning `False` cancels.
    **options
        The long options of `cqc compile`, with underscores in place of hyphens. The documentation
        lists them under "Recipe keys". The most common ones are:

        * The loop: `steps`, `sampler`, `scheduler_config` (path or dictionary), `prediction`,
          `guidance`, `null_label`, `null_cond`, `any_steps`, `trust`, …
        * Caching: `interval`, `schedule`, `cut`, `cache_fit`, `correct`
        * Quantization: `quant` (`"none"`, `"bf16"`, `"w8a8"`, `"w4a8"`), `keep_float`,
          `target_psnr`, …
        * The calibration set: `calib_samples`, `calib_noise`, `labels`, `seed`, and `cond`, a
          dictionary of arrays, paths or numbers by input name
        * The model: `dims` and `shapes` (dictionaries), `sample_input`, `time_input`,
          `prediction_output`, `sample_channel`, `per_step`, `per_request` (lists of names),
          `with_models` (list of paths), `wires` (list of pairs)

    Returns
    -------
    dict
        The decisions of the compiler: `sampler`, `steps`, `caching`, `quant` and `reading`. `psnr`
        is the PSNR of the compiled loop to the float loop on held-out samples, in decibels.
        `warnings` is the list of the importer's warnings.

    Raises
    ------
    ValueError
        An option does not exist, or options contradict each other.
    ModelError
        The model cannot be read.
    CompileError
        The model cannot be compiled with these options. `BelowFloor`, a subclass, means that the
        quality is below the required PSNR.
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
