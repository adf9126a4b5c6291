"""Flow matching: diffusers' classes, and schedules of levels that other programs use.

The oracles of the latter are written here from the papers' formulas: FlowMatchEuler is given their
levels as a list.
"""
import math

import diffusers
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler as Euler
from diffusers import FlowMatchHeunDiscreteScheduler as Heun
from diffusers import FlowMatchLCMScheduler as Lcm
from diffusers import LTXEulerAncestralRFScheduler as Ltx
from diffusers import SCMScheduler as Scm
from diffusers.schedulers.scheduling_flow_map_euler_discrete import FlowMapEulerDiscreteScheduler as FlowMap
from diffusers.schedulers.scheduling_minimax_h3 import MiniMaxH3Scheduler as MiniMax

FEW = (3, 20)


def variant(base, **members):
    """`base` under its own name, with members replaced."""
    return type(base.__name__, (base,), {"__module__": base.__module__, **members})


def with_levels(levels):
    """FlowMatchEuler with the levels of `levels(steps)` instead of its own."""
    def set_timesteps(self, num_inference_steps):
        Euler.set_timesteps(self, sigmas=list(levels(num_inference_steps)))
    return variant(Euler, set_timesteps=set_timesteps)


def ramp(n):
    return np.linspace(0, 1, n + 1)[:-1]


def sway(s):
    """F5-TTS (arXiv:2410.06885), section 3.3."""
    return lambda n: [1 - (u + s * (math.cos(math.pi / 2 * u) - 1 + u)) for u in ramp(n)]


def zipvoice(s):
    """ZipVoice (arXiv:2506.13053): t' = s t / (1 + (s - 1) t)."""
    return lambda n: [1 - s * u / (1 + (s - 1) * u) for u in ramp(n)]


def linear_quadratic(n):
    from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
    return linear_quadratic_schedule(n, 0.025)


# the list of the class ends with the level after the last step, ours does not
def ltx_list(self, num_inference_steps=None, sigmas=None, mu=None):
    Ltx.set_timesteps(self, num_inference_steps, sigmas=sigmas and sigmas + [0.0], mu=mu)
    if sigmas:
        self.all, self.timesteps = self.timesteps, self.timesteps[:-1]


def ltx_from_config(**config):
    """Keys that the class does not know reach the FlowMatchEuler that makes its levels."""
    return OwnLtx.from_config(config)


# the pipeline does not evaluate the last time, 0
def scm_set(self, num_inference_steps=None, timesteps=None):
    if timesteps is not None:
        Scm.set_timesteps(self, len(timesteps), list(timesteps) + [0.0], max_timesteps=None, intermediate_timesteps=None)
    else:
        Scm.set_timesteps(self, num_inference_steps, intermediate_timesteps=1.3 if num_inference_steps == 2 else None)
    self.all, self.timesteps = self.timesteps, self.timesteps[:-1]


def scm_step(self, output, t, x):
    self.timesteps = self.all
    return Scm.step(self, output, t, x)


class Sana:
    """What the pipeline of SANA-Sprint does around the model, in units of `sigma_data`."""

    def set_timesteps(self, num_inference_steps):
        scm_set(self, num_inference_steps)
        self.angles, t = self.timesteps, self.timesteps
        self.timesteps = torch.sin(t) / (torch.cos(t) + torch.sin(t))

    def scale_model_input(self, x, s):
        return x * torch.sqrt(s**2 + (1 - s) ** 2)

    def step(self, output, s, x):
        i = 0 if self.step_index is None else self.step_index
        fed = self.scale_model_input(x, s)
        output = ((1 - 2 * s) * fed + (1 - 2 * s + 2 * s**2) * output) / torch.sqrt(s**2 + (1 - s) ** 2)
        d = self.config.sigma_data
        self.timesteps = self.all
        moved = Scm.step(self, output * d, self.angles[i], x * d)
        return (moved.prev_sample / d,)


def minimax(self, num_inference_steps):
    # n evaluations
    MiniMax.set_timesteps(self, num_inference_steps + 1)


OwnScm = variant(Scm, set_timesteps=scm_set, step=scm_step)
SanaScm = variant(Scm, **{k: v for k, v in vars(Sana).items() if not k.startswith("__")})
OwnLtx = variant(Ltx, set_timesteps=ltx_list)
OwnMiniMax = variant(MiniMax, set_timesteps=minimax)
NOT_DATA = dict(prediction_type="flow_to_data")
LIST = [1.0, 0.9, 0.5, 0.2]
TIMES = [1000.0, 750.5, 400.0, 35.25]

CASES = {
    "flow-euler": (Euler, {}, {}),
    "flow-euler-shift": (Euler, dict(shift=3.0), {}),
    "flow-euler-stochastic": (Euler, dict(shift=3.0, stochastic_sampling=True), {}),
    "flow-euler-dynamic": (Euler, dict(use_dynamic_shifting=True), dict(mu=0.8)),
    "flow-euler-dynamic-linear": (Euler, dict(use_dynamic_shifting=True, time_shift_type="linear"), dict(mu=1.3)),
    # one step: 0/0 in diffusers
    "flow-euler-terminal": (Euler, dict(shift_terminal=0.1, use_dynamic_shifting=True), dict(mu=1.5, steps=(2, 3, 7, 20, 50))),
    "flow-euler-karras": (Euler, dict(use_karras_sigmas=True), {}),
    "flow-euler-exponential": (Euler, dict(use_exponential_sigmas=True), {}),
    "flow-euler-beta": (Euler, dict(use_beta_sigmas=True), {}),
    "flow-euler-inverted": (Euler, dict(invert_sigmas=True), {}),
    "flow-euler-sigmas": (Euler, dict(shift=2.0), dict(sigmas=LIST)),
    "flow-euler-timesteps": (Euler, {}, dict(timesteps=TIMES)),
    "flow-euler-timesteps-shift": (Euler, dict(shift=3.0), dict(timesteps=TIMES)),
    "flow-euler-both-lists": (Euler, dict(shift=3.0), dict(timesteps=TIMES, sigmas=LIST)),
    "flow-euler-train": (Euler, dict(num_train_timesteps=250, shift=5.0), dict(steps=FEW)),
    # without two steps: diffusers divides the rounded x − (x − σ·out) by σ = 0.001 there, which
    # alone is an error of 2e-5; the shifted case below has two steps from σ = 0.006
    "flow-heun": (Heun, {}, dict(steps=(1, 3, 7, 20, 50))),
    "flow-heun-shift": (Heun, dict(shift=3.0, num_train_timesteps=500), dict(steps=(1, 2, 3, 20))),
    "flow-lcm": (Lcm, {}, {}),
    "flow-lcm-shift": (Lcm, dict(shift=3.0), dict(steps=FEW)),
    "flow-lcm-sigmas": (Lcm, dict(shift=2.0), dict(sigmas=LIST)),
    "flow-lcm-timesteps": (Lcm, dict(shift=2.0), dict(timesteps=TIMES)),
    "flow-lcm-inverted": (Lcm, dict(invert_sigmas=True, upscale_mode="nearest"), dict(steps=FEW)),
    "flow-map": (FlowMap, {}, {}),
    "flow-map-shift": (FlowMap, dict(shift=5.0, num_train_timesteps=400), dict(steps=FEW)),
    "flow-map-sigmas": (FlowMap, dict(shift=2.0), dict(sigmas=LIST)),
    "minimax-h3": (OwnMiniMax, {}, {}),
    "minimax-h3-shift": (OwnMiniMax, dict(shift=3.0), dict(steps=FEW)),
    "flow-euler-ancestral": (OwnLtx, {}, {}),
    "flow-euler-ancestral-eta": (OwnLtx, dict(eta=0.4, s_noise=1.1), dict(steps=FEW)),
    "flow-euler-ancestral-eta-0": (OwnLtx, dict(eta=0.0), dict(steps=FEW)),
    "flow-euler-ancestral-quiet": (OwnLtx, dict(s_noise=0.0, num_train_timesteps=500), dict(steps=FEW)),
    "flow-euler-ancestral-shift": (ltx_from_config, dict(shift=3.0, eta=0.6), dict(steps=FEW)),
    "flow-euler-ancestral-dynamic": (ltx_from_config, dict(use_dynamic_shifting=True, shift_terminal=0.1), dict(mu=0.8, steps=FEW)),
    "flow-euler-ancestral-karras": (ltx_from_config, dict(use_karras_sigmas=True), dict(steps=FEW)),
    "flow-euler-ancestral-sigmas": (OwnLtx, {}, dict(sigmas=LIST)),
    "scm": (OwnScm, {}, {}),
    "scm-data": (OwnScm, dict(sigma_data=1.0), dict(steps=FEW)),
    "scm-timesteps": (OwnScm, {}, dict(timesteps=[1.57, 1.1, 0.4])),
    "scm-sana": (SanaScm, {}, dict(config=dict(prediction_type="flow"))),
    "flow-even": (with_levels(lambda n: 1 - ramp(n)), dict(shift=3.0), dict(config=dict(flow_schedule="even"))),
    "flow-sway": (with_levels(sway(-1)), {}, dict(config=dict(flow_schedule=dict(sway=-1.0)))),
    "flow-sway-half": (with_levels(sway(-0.5)), dict(shift=2.0), dict(steps=FEW, config=dict(flow_schedule=dict(sway=-0.5)))),
    "flow-sway-up": (with_levels(sway(1)), {}, dict(steps=FEW, config=dict(flow_schedule=dict(sway=1.0)))),
    "flow-time-shift": (with_levels(zipvoice(0.5)), {}, dict(config=dict(flow_schedule=dict(time_shift=0.5)))),
    "flow-linear-quadratic": (with_levels(linear_quadratic), dict(invert_sigmas=True), dict(steps=(2, 3, 7, 20, 50), config=dict(flow_schedule=dict(linear_quadratic=0.025)))),
}

# every way of spreading with every way of moving
for schedule in ("karras", "exponential", "beta"):
    flag = {f"use_{schedule}_sigmas": True}
    for name, moved, options in (
        ("shift", dict(shift=3.0), {}),
        ("dynamic", dict(use_dynamic_shifting=True), dict(mu=1.1)),
        ("linear", dict(use_dynamic_shifting=True, time_shift_type="linear"), dict(mu=0.7)),
        ("terminal", dict(shift=2.0, shift_terminal=0.05), {}),
        ("inverted", dict(shift=2.0, invert_sigmas=True), {}),
        ("stochastic", dict(shift=2.0, stochastic_sampling=True), {}),
        ("sigmas", dict(shift=2.0), dict(sigmas=LIST)),
    ):
        CASES[f"flow-euler-{schedule}-{name}"] = (Euler, {**flag, **moved}, {"steps": FEW, **options})
    CASES[f"flow-lcm-{schedule}"] = (Lcm, {**flag, "shift": 2.0}, dict(steps=FEW))
for name, dynamic in (("", {}), ("-linear", dict(time_shift_type="linear"))):
    dynamic = dict(use_dynamic_shifting=True, **dynamic)
    CASES[f"flow-euler-dynamic{name}-sigmas"] = (Euler, dynamic, dict(mu=0.9, sigmas=LIST))
    CASES[f"flow-euler-dynamic{name}-timesteps"] = (Euler, dynamic, dict(mu=0.9, timesteps=TIMES))
    CASES[f"flow-euler-dynamic{name}-terminal-sigmas"] = (Euler, dict(shift_terminal=0.1, **dynamic), dict(mu=0.9, sigmas=LIST))
    CASES[f"flow-euler-dynamic{name}-inverted"] = (Euler, dict(invert_sigmas=True, **dynamic), dict(mu=0.9, timesteps=TIMES))
    CASES[f"flow-lcm-dynamic{name}"] = (Lcm, dict(shift_terminal=0.1, **dynamic), dict(mu=0.9, steps=FEW))
