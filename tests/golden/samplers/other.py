"""DDIM and DDPM with every option; Wuerstchen, CogVideoX, unCLIP."""
import importlib

import numpy as np
import torch
from diffusers import CogVideoXDDIMScheduler as CogDdim
from diffusers import CogVideoXDPMScheduler as CogDpm
from diffusers import DDIMParallelScheduler as DdimParallel
from diffusers import DDIMScheduler as Ddim
from diffusers import DDPMParallelScheduler as DdpmParallel
from diffusers import DDPMScheduler as Ddpm
from diffusers import DDPMWuerstchenScheduler as Wuerstchen
from diffusers import UnCLIPScheduler as UnClip

FEW = (3, 20)


def variant(base, **members):
    """`base` under its own name, with members replaced."""
    return type(base.__name__, (base,), {"__module__": base.__module__, **members})


# the pipelines do not evaluate the last time, 0
def wuerstchen_set(self, num_inference_steps=None, timesteps=None):
    Wuerstchen.set_timesteps(self, num_inference_steps, timesteps and list(timesteps) + [0.0])
    self.all, self.timesteps = self.timesteps, self.timesteps[:-1]


def wuerstchen_step(self, output, t, x):
    self.timesteps = self.all
    return Wuerstchen.step(self, output, t.expand(len(x)), x)


# the pipeline keeps the last image and says where it came from; the first of two draws of noise is
# not used
def cog_step(self, output, t, x):
    steps = self.timesteps.tolist()
    i = steps.index(int(t))
    draw = importlib.import_module(self.__module__).randn_tensor
    before = len(draw.drawn)
    old = self.old if i > 0 else None
    x, self.old = CogDpm.step(self, output, old, t, steps[i - 1] if i > 0 else None, x)
    del draw.drawn[before:-1]
    return (x,)


# the pipeline says where the step ends
def unclip_step(self, output, t, x):
    steps = self.timesteps.tolist()
    i = steps.index(int(t))
    return UnClip.step(self, output, t, x, prev_timestep=steps[i + 1] if i + 1 < len(steps) else None)


class GivenDdim:
    """DDIM (arXiv:2010.02502), equation 12, over given time steps, in float64: diffusers' class takes none."""

    def set_timesteps(self, timesteps):
        self.list, self.timesteps = list(timesteps), torch.tensor(timesteps)

    def step(self, output, t, x, eta=0.0):
        i = self.list.index(int(t))
        a = self.alphas_cumprod[t].double()
        b = self.alphas_cumprod[self.list[i + 1]].double() if i + 1 < len(self.list) else torch.tensor(1.0).double()
        image = (x.double() - (1 - a).sqrt() * output) / a.sqrt()
        return ((b.sqrt() * image + (1 - b).sqrt() * output).float(),)


OwnWuerstchen = variant(Wuerstchen, set_timesteps=wuerstchen_set, step=wuerstchen_step)
OwnCogDpm = variant(CogDpm, step=cog_step)
OwnUnClip = variant(UnClip, step=unclip_step)
OwnDdim = variant(Ddim, set_timesteps=GivenDdim.set_timesteps, step=GivenDdim.step)
THRESHOLD = dict(thresholding=True, dynamic_thresholding_ratio=0.7, sample_max_value=1.6)
BETAS = [0.001 + 0.0004 * i for i in range(100)]

CASES = {
    "ddim": (Ddim, {}, {}),
    "ddim-given": (OwnDdim, dict(clip_sample=False), dict(timesteps=[999, 700, 300, 10])),
    "ddim-parallel": (DdimParallel, dict(clip_sample=False), dict(steps=FEW)),
    "ddpm": (Ddpm, {}, {}),
    "ddpm-parallel": (DdpmParallel, dict(clip_sample=False), dict(steps=FEW)),
    "ddpm-timesteps": (Ddpm, dict(clip_sample=False), dict(timesteps=[999, 700, 300, 10])),
    "wuerstchen": (OwnWuerstchen, {}, {}),
    "wuerstchen-scaler-2": (OwnWuerstchen, dict(scaler=2.0, s=0.02), dict(steps=FEW)),
    "wuerstchen-scaler-half": (OwnWuerstchen, dict(scaler=0.5), dict(steps=FEW)),
    "wuerstchen-timesteps": (OwnWuerstchen, {}, dict(timesteps=np.linspace(1, 2 / 3, 5).tolist() + [0.4, 0.1])),
    "unclip": (OwnUnClip, {}, dict(steps=(2, 3, 7, 20, 50))),
    "unclip-train": (OwnUnClip, dict(num_train_timesteps=100, clip_sample_range=2.0), dict(steps=(3, 100))),
    "unclip-learned": (OwnUnClip, dict(variance_type="learned_range", clip_sample=False), dict(variance="learned_range", steps=FEW)),
    "unclip-sample": (OwnUnClip, dict(prediction_type="sample", clip_sample_range=5.0), dict(steps=FEW)),
}
for name, arguments in {
    "threshold": THRESHOLD,
    "clip": dict(clip_sample=True, clip_sample_range=0.6),
    "offset": dict(steps_offset=1, clip_sample=False),
    "trailing": dict(timestep_spacing="trailing", clip_sample=False),
    "linspace": dict(timestep_spacing="linspace", clip_sample=False),
    "v": dict(prediction_type="v_prediction", clip_sample=False),
    "v-zero-snr": dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False),
    "sample": dict(prediction_type="sample", clip_sample=False),
    "scaled": dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False),
    "cosine": dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=500, clip_sample=False),
    "trained": dict(trained_betas=BETAS, num_train_timesteps=100, clip_sample=False),
}.items():
    CASES[f"ddim-{name}"] = (Ddim, arguments, dict(steps=FEW))
    CASES[f"ddpm-{name}"] = (Ddpm, arguments, dict(steps=FEW))
    CASES[f"ddim-{name}-eta"] = (Ddim, arguments, dict(steps=(20,), eta=0.7, step=dict(eta=0.7)))
CASES["ddim-alpha-0"] = (Ddim, dict(set_alpha_to_one=False), dict(steps=FEW))
CASES["ddim-eta-1"] = (Ddim, {}, dict(steps=FEW, eta=1.0, step=dict(eta=1.0)))
CASES["ddpm-sigmoid"] = (Ddpm, dict(beta_schedule="sigmoid", beta_end=0.01), dict(steps=FEW))
CASES["ddpm-laplace"] = (Ddpm, dict(beta_schedule="laplace", num_train_timesteps=500), dict(steps=FEW))
for variance in ("fixed_small_log", "fixed_large", "learned", "learned_range"):
    options = dict(variance=variance) if variance.startswith("learned") else {}
    CASES[f"ddpm-{variance}"] = (Ddpm, dict(variance_type=variance), dict(steps=FEW, **options))

for name, cls in (("cogvideox-ddim", CogDdim), ("cogvideox-dpm", OwnCogDpm)):
    CASES[name] = (cls, {}, {})
    for option, arguments in {
        "trailing": dict(timestep_spacing="trailing"),
        "linspace": dict(timestep_spacing="linspace"),
        "offset": dict(steps_offset=1, snr_shift_scale=1.0),
        # what the checkpoints have
        "5b": dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0, timestep_spacing="trailing"),
        "zero-snr": dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
        "sample": dict(prediction_type="sample", beta_schedule="linear"),
        "linear": dict(beta_schedule="linear"),
        "cosine": dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=500),
        "trained": dict(trained_betas=BETAS, num_train_timesteps=100),
        "alpha-0": dict(set_alpha_to_one=False),
        # diffusers reads neither of the two
        "silent": dict(clip_sample=False, sample_max_value=2.0),
    }.items():
        CASES[f"{name}-{option}"] = (cls, arguments, dict(steps=FEW))
