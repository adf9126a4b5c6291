"""Writes samplers.npz: short trajectories of diffusers' schedulers, replayed by runtime/tests/sampler_goldens.rs.

    python tests/golden/make_sampler_goldens.py        # needs torch and diffusers; any CPU

Per case NAME the file holds
    NAME/json        the scheduler's own JSON (bytes), as it lies in a pipeline directory
    NAME/kind        the cqc kind, if it is given beside the JSON (bytes; empty: the class decides)
    NAME/eta         DDIM's eta
    NAME/timesteps   [T] as fed to the network                      NAME/scale  [T+1]: T input scales, then init_noise_sigma
    NAME/x           [T+1, 2, 3, 4, 4]: before the first evaluation, then after each
    NAME/output      [T, 2, C, 4, 4], C = 3, or 6 with a learned variance
    NAME/noise       [S, 2, 3, 4, 4]: what each noisy step added, in order
The network is an analytic stand-in in float32. The `quadratic` cases are not diffusers': their reference is `ddim_subset`.
"""
import json
import pathlib

import diffusers
import numpy as np
import torch
from diffusers.schedulers import scheduling_ddpm
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler

SHAPE = (2, 3, 4, 4)
LATENT = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
COSINE = dict(beta_schedule="squaredcos_cap_v2")
TRAINED = dict(num_train_timesteps=100, trained_betas=[round(0.002 + 0.0004 * i, 6) for i in range(100)])
V = dict(prediction_type="v_prediction")
X0 = dict(prediction_type="sample")
TRAIL, LIN = dict(timestep_spacing="trailing"), dict(timestep_spacing="linspace")
KARRAS = dict(use_karras_sigmas=True)
LEAD, HEUN = dict(timestep_spacing="leading"), dict(solver_type="heun")
TO_MIN = dict(final_sigmas_type="sigma_min")
PLMS = dict(skip_prk_steps=True)

# name: (class, steps, constructor arguments, eta)
CASES = {
    "ddim": (DDIMScheduler, 10, {}, 0),
    "ddim-50": (DDIMScheduler, 50, {}, 0),
    "ddim-1-step": (DDIMScheduler, 1, {}, 0),
    "ddim-eta": (DDIMScheduler, 10, {}, 0.3),
    "ddim-eta-1-no-clip": (DDIMScheduler, 7, dict(clip_sample=False), 1),
    "ddim-latent": (DDIMScheduler, 10, dict(**LATENT, clip_sample=False, set_alpha_to_one=False, steps_offset=1), 0),
    "ddim-v-trailing-zero-snr": (DDIMScheduler, 10, dict(**V, **TRAIL, rescale_betas_zero_snr=True, clip_sample=False), 0),
    "ddim-sample-linspace": (DDIMScheduler, 9, dict(**X0, **LIN, clip_sample_range=0.7), 0),
    "ddim-cosine-trailing": (DDIMScheduler, 7, dict(**COSINE, **TRAIL), 0),
    "ddim-trained-betas": (DDIMScheduler, 11, dict(**TRAINED, clip_sample=False), 0),
    "ddpm": (DDPMScheduler, 10, {}, 0),
    "ddpm-all-steps": (DDPMScheduler, 20, dict(num_train_timesteps=20, beta_end=0.3), 0),
    "ddpm-small-log-linspace": (DDPMScheduler, 10, dict(variance_type="fixed_small_log", **LIN), 0),
    "ddpm-large-offset": (DDPMScheduler, 10, dict(variance_type="fixed_large", steps_offset=1), 0),
    "ddpm-learned": (DDPMScheduler, 8, dict(variance_type="learned", clip_sample=False), 0),
    "ddpm-learned-range": (DDPMScheduler, 10, dict(variance_type="learned_range", **COSINE), 0),
    "ddpm-v-trailing": (DDPMScheduler, 7, dict(**V, **TRAIL, rescale_betas_zero_snr=True), 0),
    "ddpm-sample": (DDPMScheduler, 6, dict(**X0, **LATENT, clip_sample_range=2.0), 0),
    "plms": (PNDMScheduler, 10, dict(**PLMS), 0),
    "plms-1-step": (PNDMScheduler, 1, dict(**PLMS), 0),
    "plms-2-steps": (PNDMScheduler, 2, dict(**PLMS), 0),
    "plms-latent": (PNDMScheduler, 12, dict(**PLMS, **LATENT, steps_offset=1), 0),
    "plms-v-trailing": (PNDMScheduler, 9, dict(**PLMS, **V, **TRAIL, set_alpha_to_one=True), 0),
    "plms-linspace": (PNDMScheduler, 10, dict(**PLMS, **LIN), 0),
    "euler": (EulerDiscreteScheduler, 10, {}, 0),
    "euler-latent-leading": (EulerDiscreteScheduler, 10, dict(**LATENT, **LEAD, steps_offset=1), 0),
    "euler-v-trailing": (EulerDiscreteScheduler, 9, dict(**V, **TRAIL, rescale_betas_zero_snr=True), 0),
    "euler-sample": (EulerDiscreteScheduler, 7, dict(**X0), 0),
    "euler-karras": (EulerDiscreteScheduler, 12, dict(**KARRAS, **LATENT), 0),
    "euler-karras-range": (EulerDiscreteScheduler, 6, dict(**KARRAS, **TO_MIN, sigma_min=0.05, sigma_max=20.0), 0),
    "dpmpp": (DPMSolverMultistepScheduler, 10, {}, 0),
    "dpmpp-20": (DPMSolverMultistepScheduler, 20, dict(**LATENT), 0),
    "dpmpp-1-step": (DPMSolverMultistepScheduler, 1, {}, 0),
    "dpmpp-heun-leading": (DPMSolverMultistepScheduler, 10, dict(**HEUN, **LEAD, steps_offset=1), 0),
    "dpmpp-sigma-min": (DPMSolverMultistepScheduler, 8, dict(**TO_MIN, lower_order_final=False), 0),
    "dpmpp-sigma-min-lower": (DPMSolverMultistepScheduler, 8, dict(**TO_MIN), 0),
    "dpmpp-euler-at-final": (DPMSolverMultistepScheduler, 16, dict(**TO_MIN, euler_at_final=True), 0),
    "dpmpp-karras": (DPMSolverMultistepScheduler, 16, dict(**KARRAS, **LATENT), 0),
    "dpmpp-karras-cosine": (DPMSolverMultistepScheduler, 8, dict(**KARRAS, **COSINE), 0),
    "dpmpp-cosine-clipped": (DPMSolverMultistepScheduler, 9, dict(**COSINE, lambda_min_clipped=-5.1), 0),
    "dpmpp-v-trailing": (DPMSolverMultistepScheduler, 7, dict(**V, **TRAIL, rescale_betas_zero_snr=True), 0),
    "dpmpp-sample": (DPMSolverMultistepScheduler, 6, dict(**X0), 0),
    "dpmpp-learned-dropped": (DPMSolverMultistepScheduler, 6, dict(variance_type="learned_range"), 0),
}

# As Stable Diffusion 1.x ships it; read by the class of another sampler.
SD_FILE = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}
KINDS = {
    "ddim": DDIMScheduler, "ddpm": DDPMScheduler, "plms": PNDMScheduler, "euler": EulerDiscreteScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
}


def network(x, t, variance):
    """float32 in, float32 out: 0.9 sin(3x + t/1000) + 0.1x, and a second half of the kind that `variance` wants."""
    eps = torch.sin(3 * x + t / 1000) * 0.9 + 0.1 * x
    if variance == "learned":
        return torch.cat([eps, 0.01 + 0.005 * torch.cos(2 * x)], dim=1)
    return torch.cat([eps, torch.cos(2 * x + t / 500)], dim=1) if variance == "learned_range" else eps


def normal(rng):
    return torch.from_numpy(rng.standard_normal(SHAPE).astype(np.float32))


def trajectory(scheduler, steps, eta, rng):
    """Everything that is stored of a case, but for its JSON and kind."""
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else the first step looks itself up by time step, and misses when two are equal
    variance = scheduler.config.get("variance_type")
    noises, outputs, scales = [], [], []

    def next_noise(*_args, **_kwargs):
        noises.append(normal(rng))
        return noises[-1]

    scheduling_ddpm.randn_tensor = next_noise  # DDPM's step takes no noise argument
    x = normal(rng) * float(scheduler.init_noise_sigma)
    xs = [x]
    for t in scheduler.timesteps:
        fed = scheduler.scale_model_input(x, t)
        scales.append(float((fed / x).flatten()[0].double()))
        outputs.append(network(fed, t, variance))
        extra = dict(eta=eta, variance_noise=next_noise()) if eta else {}
        x = scheduler.step(outputs[-1], t, x, **extra).prev_sample
        xs.append(x)
    scales.append(float(scheduler.init_noise_sigma))
    return scheduler.timesteps.double().numpy(), scales, xs, outputs, noises


def ddim_subset(steps, eta, rng):
    """DDIM over the quadratic subset, as the DDPM and CacheQuant scripts do it: no clipping, 1 after the last step."""
    alphas = DDIMScheduler().alphas_cumprod
    subset = [int(s) for s in np.linspace(0, np.sqrt(1000 * 0.8), steps) ** 2]
    noises, outputs = [], []
    xs = [normal(rng)]
    for t, after in zip(reversed(subset), reversed([-1] + subset[:-1])):
        a, b = alphas[t], alphas[after] if after >= 0 else torch.tensor(1.0)
        eps = network(xs[-1], t, None)
        image = (xs[-1] - (1 - a) ** 0.5 * eps) / a**0.5
        std = eta * ((1 - a / b) * (1 - b) / (1 - a)) ** 0.5
        x = b**0.5 * image + (1 - b - std**2) ** 0.5 * eps
        if eta:
            noises.append(normal(rng))
            x = x + std * noises[-1]
        outputs.append(eps)
        xs.append(x)
    return np.array(subset[::-1], np.float64), [1.0] * (steps + 1), xs, outputs, noises


def main():
    arrays = {"diffusers": np.frombuffer(diffusers.__version__.encode(), np.uint8)}
    rng = np.random.default_rng(0)
    runs = {}
    for name, (make, steps, kwargs, eta) in CASES.items():
        scheduler = make(**kwargs)
        runs[name] = scheduler.to_json_string(), "", eta, trajectory(scheduler, steps, eta, rng)
    for kind, make in KINDS.items():
        runs[f"sd-file-as-{kind}"] = json.dumps(SD_FILE), kind, 0, trajectory(make.from_config(SD_FILE), 6, 0, rng)
    quadratic = json.dumps({"_class_name": "DDIMScheduler", "clip_sample": False, "timestep_spacing": "quadratic"})
    runs["ddim-quadratic"] = quadratic, "", 0, ddim_subset(20, 0, rng)
    runs["ddim-quadratic-eta"] = quadratic, "", 0.5, ddim_subset(12, 0.5, rng)
    for name, (text, kind, eta, (timesteps, scales, xs, outputs, noises)) in runs.items():
        assert all(torch.isfinite(x).all() for x in xs), name
        stack = lambda tensors: np.stack([t.numpy() for t in tensors]) if tensors else np.zeros((0, *SHAPE), np.float32)
        arrays |= {
            f"{name}/json": np.frombuffer(text.encode(), np.uint8),
            f"{name}/kind": np.frombuffer(kind.encode(), np.uint8),
            f"{name}/eta": np.array([eta], np.float64),
            f"{name}/timesteps": timesteps,
            f"{name}/scale": np.array(scales, np.float64),
            f"{name}/x": stack(xs),
            f"{name}/output": stack(outputs),
            f"{name}/noise": stack(noises),
        }
    np.savez(pathlib.Path(__file__).with_name("samplers.npz"), **arrays)


if __name__ == "__main__":
    main()
