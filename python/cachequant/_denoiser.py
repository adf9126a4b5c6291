"""Opened artifacts: the whole sampling loop, and the network of a diffusers pipeline."""

import contextlib
import json
import os
import threading
import weakref

import numpy as np

from . import _cachequant
from ._arrays import contiguous, to_numpy
from ._cachequant import RequestError

# factors between the time steps of a scheduler and the times that pipelines give to the network
_SCALES = (1.0, 1e-3, 1e3)
# arguments of diffusers' models that are not inputs of the network
_MANNERS = ("return_dict", "joint_attention_kwargs", "cross_attention_kwargs", "attention_kwargs")
# the most loops that are kept open per thread, one for each batch size and list of time steps
_OPEN_LOOPS = 4


class Output:
    """The result of a call of a `Denoiser`: `output.sample`, or `output[0]`."""

    def __init__(self, sample):
        self.sample = sample

    def __getitem__(self, index):
        return (self.sample,)[index]

    def __iter__(self):
        return iter((self.sample,))


class Config(dict):
    """The configuration of a model: a dictionary whose keys are also attributes."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Denoiser:
    """An opened artifact.

    The method `sample` runs the whole sampling loop. The object itself can be called like
    `pipe.unet` or `pipe.transformer` of diffusers, so that a pipeline drives it with the pipeline's
    own scheduler::

        pipe.unet = cachequant.Denoiser("unet.cq", pipe)

    The first call of a loop begins a request. Every further call is the next evaluation of the
    compiled loop, and its time step must be the one of that evaluation. The time steps of the
    pipeline's scheduler define the evaluations. They may differ from the time steps that the artifact
    was compiled for if it was compiled with `any_steps=True`. The pipeline applies guidance: it
    passes the unconditional and the conditional half as one batch.

    Several threads may use one object. Every thread has a loop of its own.

    Parameters
    ----------
    artifact : path or bytes
        A `.cq` file, or its contents.
    pipe : optional
        The pipeline that calls the object. Its scheduler gives the time steps of a loop, and the
        configuration of the replaced model is copied.
    threads : int, optional
        The number of threads that compute, by default one per core. The results do not depend on
        it.
    device : str
        `"auto"`, `"cpu"` or `"cuda"`.
    """

    def __init__(self, artifact, pipe=None, *, threads=None, device="auto"):
        if isinstance(artifact, (bytes, bytearray, memoryview)):
            self.path = None
            self._artifact = _cachequant.Artifact.from_bytes(bytes(artifact))
        else:
            self.path = os.fspath(artifact)
            self._artifact = _cachequant.Artifact.open(self.path, True)
        self.info = json.loads(self._artifact.info())
        self._threads, self._device = threads, device
        self._inputs = {i["name"]: i for i in self.info["inputs"]}
        by_role = {i["role"]: i["name"] for i in self.info["inputs"]}
        self._sample_name, self._time_name = by_role["sample"], by_role["timestep"]
        self._local = threading.local()
        self._pipe = None
        self.config, self.dtype, self.device = Config(), None, None
        self.timesteps = None
        if pipe is not None:
            self.attach(pipe)

    def __repr__(self):
        info = self.info
        how = [f"{info['steps']} steps"]
        how += ["cached"] * info["cached"] + ["quantized"] * info["quantized"]
        return f"cachequant.Denoiser({self.path or 'bytes'!r}: {', '.join(how)})"

    def attach(self, pipe):
        """Take the time steps of loops from the scheduler of `pipe`, and copy the attributes of the
        replaced model that pipelines read."""
        self._pipe = weakref.ref(pipe)
        model = getattr(pipe, "unet", None)
        if model is None:
            model = getattr(pipe, "transformer", None)
        if model is None:
            model = getattr(pipe, "prior", None)
        if model is None or isinstance(model, Denoiser):
            return
        self.config, self.dtype, self.device = model.config, model.dtype, model.device
        # SDXL compares the length of its added embedding with the width of this layer
        if hasattr(model, "add_embedding"):
            self.add_embedding = model.add_embedding
        for name in ("encoder_hid_proj", "text_time_embedding"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))

    def to(self, *_, **__):
        """Do nothing and return the object: the device was chosen when the artifact was opened."""
        return self

    def eval(self):
        """Do nothing and return the object: an artifact has no training mode."""
        return self

    @contextlib.contextmanager
    def cache_context(self, name):
        """Mark the calls inside of the `with` block as calls of the loop `name`.

        Pipelines that evaluate the two halves of guidance one after the other name them with it.
        """
        before = getattr(self._local, "context", None)
        self._local.context = name
        try:
            yield
        finally:
            self._local.context = before

    # ---- the whole loop

    def sample(
        self,
        n=None,
        *,
        seed=0,
        noise=None,
        labels=None,
        cond=None,
        null_cond=None,
        guidance=None,
        guidance_rescale=None,
        guidance_interval=None,
        steps=None,
        init=None,
        strength=None,
        mask=None,
        start=None,
        end=None,
        batch=None,
        progress=None,
    ):
        """Run the compiled sampling loop and return the samples, a float32 array `[n, ...]`.

        Parameters
        ----------
        n : int, optional
            The number of samples; by default the length of `noise`, `init` or `labels`, or else 1.
        seed : int
            The seed of all noise.
        noise : array, optional
            The initial noise `[n, ...]`, of unit variance; by default it is drawn from `seed`.
        labels : sequence of int, optional
            The class labels, repeated in turn over the samples.
        cond, null_cond : dict, optional
            The values of the conditions by input name: one row per sample, one row for all of them,
            or a number. `null_cond` are the values of the unconditional half of guidance.
        guidance : float, optional
            The scale of classifier-free guidance; by default the artifact's.
        guidance_rescale : float, optional
            How far the standard deviation of the guided prediction is moved to the one of the
            conditional prediction, from 0 to 1 (arXiv:2305.08891, section 3.4).
        guidance_interval : (float, float), optional
            The part of the loop in which guidance applies, as two shares of the number of steps.
        steps : int, optional
            The number of sampling steps; by default the number that was compiled.
        init, strength, mask : optional
            Image to image: `init` is an image or a latent `[n, ...]`, `strength` is the share of the
            steps that run on it (0 to 1), and the image is kept where `mask` is 0.
        start, end : int, optional
            Run the steps from `start` up to `end` only. `noise` then is the state of the samples
            before step `start`.
        batch : int, optional
            The number of samples that are computed at once; by default all of them, at most 8.
        progress : callable, optional
            Called as `progress(evaluation, evaluations, first, end)` after every evaluation of the
            samples `first` to `end - 1`. Returning `False` cancels.

        Raises
        ------
        RequestError
            The artifact cannot do what the arguments ask for.
        Cancelled
            `progress` returned `False`.
        """
        labels = None if labels is None else [int(label) for label in labels]
        if n is None:
            rows = [len(x) for x in (noise, init, labels) if x is not None]
            n = rows[0] if rows else 1
        given = {"samples": n, "seed": seed}
        conditions = self._conditions(cond or {})
        if labels is not None:
            name = self._label_input()
            shape = [n] + [1] * (len(self._inputs[name]["shape"]) - 1)
            rows = [labels[i % len(labels)] for i in range(n)]
            conditions[name] = np.array(rows, np.int64).reshape(shape)
        given["conditions"] = conditions
        if null_cond:
            given["unconditional"] = self._conditions(null_cond)
        for key, value in (("noise", noise), ("init", init), ("mask", mask)):
            if value is not None:
                given[key] = contiguous(value, np.float32)
        plain = {"guidance_rescale": guidance_rescale, "guidance_interval": guidance_interval}
        plain |= {"guidance": guidance, "strength": strength, "from": start, "to": end}
        given |= {key: value for key, value in plain.items() if value is not None}
        batch = batch or self.info["batch"] or min(n, 8)
        guided = self.info["guidance"] if guidance is None else guidance
        loop = self._loop(batch, steps=steps, guided=guided)
        return loop.sample(given, progress)

    def _label_input(self):
        for name, i in self._inputs.items():
            if i["role"] == "condition" and i["dtype"].startswith(("i", "u")):
                return name
        raise RequestError("the model has no input for labels")

    def _conditions(self, values):
        known = [name for name, i in self._inputs.items() if "condition" in i["role"]]
        for name in values:
            if name not in known:
                raise RequestError(f"no condition {name!r}; there are: {', '.join(known) or 'none'}")
        plain = (int, float)
        return {n: v if isinstance(v, plain) else self._array(n, v) for n, v in values.items()}

    def _array(self, name, value):
        """Convert a condition to a type of the input: masks come as integers, floats or booleans."""
        array, to = contiguous(value), self._inputs[name]["dtype"]
        if to == "bool":
            return contiguous(array, np.bool_)
        if to[0] in "fb" and array.dtype.kind != "f":
            return contiguous(array, np.float32)
        if to[0] in "iu" and array.dtype.kind == "b":
            return contiguous(array, np.int64)
        return array

    # ---- one evaluation

    def __call__(self, *args, **kwargs):
        """Evaluate the network for one batch at one time step, like a model of diffusers.

        The sample, the time step and the text states may be positional arguments. All other inputs
        are keyword arguments.
        """
        return_dict = kwargs.get("return_dict", True)
        sample, time, conditions = self._arguments(args, kwargs)
        like = sample
        x = contiguous(sample, np.float32)
        if x.ndim == 0 or list(x.shape[1:]) != self.info["sample_shape"]:
            raise RequestError(
                f"the sample is {list(x.shape)}, the artifact takes "
                f"[batch, {', '.join(map(str, self.info['sample_shape']))}]"
            )
        times = to_numpy(time).reshape(-1).astype(np.float64)
        if not len(times) or (times != times[0]).any():
            raise RequestError("all samples of a call must have the same time step")
        run = self._next(len(x), float(times[0]), _rounding(time), conditions)
        for name, value in conditions.items():
            if self._inputs[name]["role"] == "step_condition":
                run.loop.set_condition(run.trajectory, name, value)
        predicted = _like(run.loop.predict(run.trajectory, x), like)
        return Output(predicted) if return_dict else (predicted,)

    def _arguments(self, args, kwargs):
        """Return the sample, the time step, and the conditions by input name."""
        given = {k: v for k, v in kwargs.items() if k not in _MANNERS and v is not None}
        for name in _MANNERS[1:]:
            # LoRA scales and attention processors would change the network
            if kwargs.get(name):
                raise RequestError(f"the artifact cannot do {name}={kwargs[name]!r}")
        conditions = {}
        positional = [self._sample_name, self._time_name, "encoder_hidden_states"]
        if len(args) > len(positional):
            raise RequestError("give what follows the text states by name")
        for name, value in zip(positional, args):
            if value is not None:
                given[name] = value
        aliases = {
            self._sample_name: ("sample", "hidden_states", "x"),
            self._time_name: ("timestep", "timesteps", "t"),
        }
        for name, others in aliases.items():
            for other in others:
                if name not in given and other in given and other not in self._inputs:
                    given[name] = given.pop(other)
        flat = {}
        for name, value in given.items():
            if isinstance(value, dict):
                flat |= {k: v for k, v in value.items() if v is not None}
            elif isinstance(value, (list, tuple)) and name not in self._inputs:
                stem = name[:-1] if name.endswith("s") else name
                flat |= {f"{stem}_{i}": v for i, v in enumerate(value)}
            else:
                flat[name] = value
        for name in (self._sample_name, self._time_name):
            if name not in flat:
                raise RequestError(f"the call lacks {name!r}")
        sample, time = flat.pop(self._sample_name), flat.pop(self._time_name)
        for name, value in flat.items():
            if name not in self._inputs:
                known = ", ".join(self._inputs)
                raise RequestError(f"the artifact has no input {name!r}; it has {known}")
            conditions[name] = self._array(name, value)
        missing = [n for n, i in self._inputs.items() if i["role"] == "condition"]
        filled = self.info["fills"]
        missing = [name for name in missing if name not in conditions and name not in filled]
        if missing:
            raise RequestError(f"the call lacks {', '.join(map(repr, missing))}")
        return sample, time, conditions

    def _next(self, batch, time, rounding, conditions):
        """Return the run whose next evaluation this call is; begin one if there is none."""
        runs = self._local.__dict__.setdefault("runs", {})
        context = getattr(self._local, "context", None)
        run = runs.get(context)
        constant = {
            n: v for n, v in conditions.items() if self._inputs[n]["role"] == "condition"
        }
        expected = None
        if run is not None and run.batch == batch and run.next < len(run.timesteps):
            expected = run.timesteps[run.next]
        if expected is not None and _same(expected, time, rounding):
            if not _equal(run.conditions, constant):
                raise RequestError(
                    "a condition changed in the middle of a loop: the artifact has computed with "
                    "what it was at the first call; compile with per_step=[…] for conditions that vary"
                )
        else:
            run = runs[context] = self._begin(batch, time, rounding, constant)
        run.next += 1
        return run

    def _begin(self, batch, time, rounding, conditions):
        timesteps = self._timesteps()
        at = found = None
        for scale in _SCALES:
            scaled = [t * scale for t in timesteps]
            nearest = min(range(len(scaled)), key=lambda i: abs(scaled[i] - time))
            if _same(scaled[nearest], time, rounding):
                at, found = nearest, scaled
                break
        if found is None:
            listed = ", ".join(f"{t:g}" for t in timesteps[:4])
            raise RequestError(
                f"time step {time:g} is none of the loop's ({len(timesteps)}: {listed}, …); give the "
                "pipeline to Denoiser(artifact, pipe), or set denoiser.timesteps"
            )
        loop = self._loop(batch, timesteps=found)
        trajectory = loop.begin(conditions, at)
        kept = {name: np.array(value) for name, value in conditions.items()}
        return _Run(loop, trajectory, found, batch, at, kept)

    def _timesteps(self):
        """Return the time steps of the next loop."""
        if self.timesteps is not None:
            return [float(t) for t in to_numpy(self.timesteps)]
        pipe = self._pipe and self._pipe()
        listed = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
        if listed is None or len(listed) == 0:
            return self.info["timesteps"]
        return [float(t) for t in to_numpy(listed)]

    def _loop(self, batch, *, steps=None, timesteps=None, guided=1.0):
        open_loops = self._local.__dict__.setdefault("loops", {})
        fixed = self.info["batch"]
        if timesteps is not None:
            if fixed and fixed != batch:
                raise RequestError(f"the artifact computes {fixed} samples at once, not {batch}")
            own = [float(t) for t in self.info["timesteps"]]
            same = len(own) == len(timesteps) and all(map(_same, own, timesteps))
            timesteps = own if same else timesteps
        key = (batch, steps, timesteps and tuple(timesteps), guided != 1.0)
        loop = open_loops.pop(key, None)
        if loop is None:
            loop = self._artifact.open_loop(
                batch, self._threads, steps, timesteps, float(guided), self._device
            )
        open_loops[key] = loop  # the least recently used loop is the first
        while len(open_loops) > _OPEN_LOOPS:
            del open_loops[next(iter(open_loops))]
        return loop


class _Run:
    """A loop between its first and its last evaluation."""

    def __init__(self, loop, trajectory, timesteps, batch, at, conditions):
        self.loop, self.trajectory, self.timesteps = loop, trajectory, timesteps
        self.batch, self.next, self.conditions = batch, at, conditions


def _rounding(time):
    """Return the relative rounding error of a time step that comes as this type."""
    dtype = str(getattr(time, "dtype", "float32")).removeprefix("torch.")
    return {"bfloat16": 8e-3, "float16": 1e-3}.get(dtype, 1e-5)


def _same(a, b, rounding=1e-5):
    """Return whether two time steps are equal up to rounding."""
    return abs(a - b) <= rounding * max(1e-2, abs(a), abs(b))


def _equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def _like(array, tensor):
    """Return the array as a tensor with the type and the device of `tensor`."""
    if not hasattr(tensor, "detach"):
        return array
    import torch

    return torch.from_numpy(array).to(device=tensor.device, dtype=tensor.dtype)
