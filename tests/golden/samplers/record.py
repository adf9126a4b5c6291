"""Records trajectories of diffusers' schedulers, replayed by runtime/tests/sampler_goldens.rs.

    python tests/golden/samplers/record.py [FAMILY..]     # needs torch and diffusers; any CPU

A family is a file FAMILY.py beside this one with `CASES`, a dictionary from the name of a case to
`(class, constructor arguments, options)`; FAMILY.npz is written. Options, all optional:

    steps      numbers of steps, one case each                 default (1, 2, 3, 7, 20, 50), or those of a list
    kind       cqc's sampler, where the class does not decide it
    eta        DDIM: the share of noise;  TCD: gamma
    mu         dynamic shift of flow matching
    sigmas, timesteps   lists that the loop is given instead of a number of steps
    variance   the network's output has a second half of this kind (`learned`, `learned_range`)
    set        further arguments of `set_timesteps`
    step       further arguments of `step`
    config     further fields of cqc's `SamplerConfig`, as JSON
    start      begins with a time step of the list other than the first (image-to-image)

FAMILY.npz holds `cases` (JSON, bytes), `f32` and `f64`; a case says how many numbers are its own, in
order. f64: T time steps as fed to the network, T input scales, the initial scale.
f32: T+1 samples [2, 1, 2, 2] (before the first evaluation, then after each), T outputs, the noise.
The network is an analytic stand-in in float32.
"""
import contextlib
import importlib
import importlib.util
import io
import json
import pathlib
import sys

import numpy as np
import torch

SHAPE = (2, 1, 2, 2)
STEPS = (1, 2, 3, 7, 20, 50)


def network(x, t, variance):
    """0.9 sin(3x + t/1000) + 0.1x, and a second half of the kind that `variance` wants."""
    t = torch.as_tensor(t, dtype=torch.float32)
    out = torch.sin(3 * x + t / 1000) * 0.9 + 0.1 * x
    if variance == "learned":
        return torch.cat([out, 0.01 + 0.005 * torch.cos(2 * x)], dim=1)
    return torch.cat([out, torch.cos(2 * x + t / 500)], dim=1) if variance == "learned_range" else out


class Noise:
    """Replaces whatever a scheduler draws noise with, and remembers what it drew."""

    def __init__(self, seed):
        self.rng, self.drawn = np.random.default_rng(seed), []

    def __call__(self, *_args, **_kwargs):
        self.drawn.append(torch.from_numpy(self.rng.standard_normal(SHAPE).astype(np.float32)))
        return self.drawn[-1]

    @contextlib.contextmanager
    def installed(self, scheduler):
        module = importlib.import_module(type(scheduler).__module__)
        saved = {}
        for where, name in [(module, "randn_tensor"), (torch, "randn"), (torch, "randn_like")]:
            if hasattr(where, name):
                saved[where, name] = getattr(where, name)
                setattr(where, name, self)
        if hasattr(module, "BrownianTreeNoiseSampler"):
            saved[module, "BrownianTreeNoiseSampler"] = module.BrownianTreeNoiseSampler
            module.BrownianTreeNoiseSampler = lambda *_args, **_kwargs: Brownian(self)
        try:
            yield self
        finally:
            for (where, name), old in saved.items():
                setattr(where, name, old)


class Brownian:
    """A Brownian motion over sigma: its increment between two levels over the root of their distance.

    Of two increments in a row that begin at one level the second contains the first, and only the rest is drawn.
    """

    def __init__(self, noise):
        self.noise, self.start, self.end, self.increment = noise, None, None, None

    def __call__(self, start, end):
        start, end = float(start), float(end)
        if start == self.start:
            self.increment = self.increment + self.noise() * abs(self.end - end) ** 0.5
        else:
            self.start, self.increment = start, self.noise() * abs(start - end) ** 0.5
        self.end = end
        return self.increment / abs(start - end) ** 0.5


def trajectory(scheduler, steps, options, seed):
    given = {key: options[key] for key in ("sigmas", "timesteps", "mu") if key in options}
    given.update(options.get("set", {}))
    if "sigmas" not in given and "timesteps" not in given:
        given["num_inference_steps"] = steps
    scheduler.set_timesteps(**given)
    start = options.get("start", 0)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    noise = Noise(seed)
    with noise.installed(scheduler):
        x = noise() * float(getattr(scheduler, "init_noise_sigma", 1.0))
        noise.drawn.clear()
        xs, outputs, scales, times = [x], [], [], []
        for t in scheduler.timesteps[start:]:
            fed = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            scales.append(float((fed / x).flatten()[0].double()))
            times.append(float(t))
            outputs.append(network(fed, t, options.get("variance")))
            x = scheduler.step(outputs[-1], t, x, **options.get("step", {}))
            x = x.prev_sample if hasattr(x, "prev_sample") else x[0]
            xs.append(x)
    return times, scales, xs, outputs, noise.drawn


def record(family):
    path = pathlib.Path(__file__).with_name(f"{family}.py")
    spec = importlib.util.spec_from_file_location(family, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cases, f32, f64 = [], [], []
    for number, (name, (cls, arguments, options)) in enumerate(module.CASES.items()):
        scheduler = cls(**arguments)
        text = scheduler.to_json_string()
        given = options.get("sigmas", options.get("timesteps"))
        for steps in options.get("steps", STEPS if given is None else [len(given)]):
            scheduler = cls(**arguments)
            with contextlib.redirect_stderr(io.StringIO()):
                times, scales, xs, outputs, noise = trajectory(scheduler, steps, options, 1000 * number + steps)
            keep = {k: options[k] for k in ("kind", "eta", "mu", "sigmas", "timesteps", "config", "start") if k in options}
            case = {"name": f"{name}-{steps}", "json": text, "steps": steps, **keep}
            case |= {"evaluations": len(times), "noises": len(noise), "channels": int(outputs[0].shape[1])}
            cases.append(case)
            f64 += times + scales + [float(getattr(scheduler, "init_noise_sigma", 1.0))]
            for tensors in (xs, outputs, noise):
                f32 += [t.detach().to(torch.float32).numpy().ravel() for t in tensors]
    texts = np.frombuffer(json.dumps(cases).encode(), np.uint8)
    out = path.with_suffix(".npz")
    np.savez_compressed(out, cases=texts, f32=np.concatenate(f32), f64=np.array(f64))
    print(f"{out}: {len(cases)} cases, {out.stat().st_size} bytes")


if __name__ == "__main__":
    here = pathlib.Path(__file__)
    for family in sys.argv[1:] or sorted(p.stem for p in here.parent.glob("*.py") if p != here):
        record(family)
