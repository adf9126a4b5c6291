"""Records loops that begin with an image, as diffusers' image-to-image and inpainting pipelines run them.

    python tests/golden/starts/record.py     # needs torch and diffusers; any CPU

Replayed by runtime/tests/start_goldens.rs. The schedulers are those of tests/golden/samplers, which also has the stand-in
for the network and for noise. What is written here is the pipelines' own part of the loop:
`get_timesteps` of StableDiffusionImg2ImgPipeline and, for flow matching, of StableDiffusion3Img2ImgPipeline; what
StableDiffusionInpaintPipeline does with a network of four channels: at strength 1 it begins with noise, and after every
evaluation the kept part of the image, with the noise of the next time step, is put back.

starts.npz holds `cases` (JSON, bytes) and `f32`, in order for each case: image, noise, n+1 samples (before the first
evaluation, then after each, the kept part put back), n outputs, the noise that the scheduler drew. All are
[1, 1, 2, 2]; outputs have two channels where the network gives a variance. All cases have the mask MASK; 1 is repainted.
"""
import contextlib
import importlib.util
import io
import json
import pathlib

import numpy as np
import torch
from diffusers import PNDMScheduler

SAMPLERS = pathlib.Path(__file__).parent.parent / "samplers"
SHAPE = (1, 1, 2, 2)
MASK = torch.tensor([1.0, 0.0, 0.25, 1.0]).reshape(SHAPE)
STRENGTHS = (0.3, 0.5, 0.75, 1.0)
STEPS = (5, 20)
STABLE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False)

WANTED = {
    "other": "ddim ddim-linspace ddim-v-zero-snr ddim-trailing-eta ddpm ddpm-trailing ddpm-learned_range wuerstchen "
             "unclip cogvideox-ddim cogvideox-dpm cogvideox-dpm-5b",
    "distilled": "lcm tcd",
    "sigma": "euler euler-sd-leading euler-karras euler-zero-snr ancestral heun heun-karras kdpm2 kdpm2-karras "
             "kdpm2-ancestral lms lms-karras dpm-sde dpm-sde-karras edm-euler edm-dpm edm-dpm-3 cosine-dpm consistency",
    "dpm": "dpm-multistep-dpmsolver++-2-midpoint dpm-multistep-dpmsolver++-3-heun dpm-multistep-dpmsolver-3-heun "
           "dpm-multistep-sde-dpmsolver++-2-midpoint dpm-multistep-karras dpm-multistep-flow dpm-multistep-lower-3-True "
           "dpm-singlestep-dpmsolver++-2-midpoint dpm-singlestep-dpmsolver++-3-heun dpm-singlestep-lower-3-True",
    "multistep": "unipc-bh2-image-2 unipc-bh1-image-3 unipc-bh2-noise-3 unipc-karras unipc-flow deis-2 deis-3 deis-karras "
                 "sa-data_prediction-2-2 sa-data_prediction-3-3 sa-noise_prediction-2-2 sa-karras",
    "flow": "flow-euler flow-euler-shift flow-euler-stochastic flow-heun flow-lcm flow-lcm-shift",
}
MORE = {
    "plms": (PNDMScheduler, dict(STABLE, skip_prk_steps=True), {}),
    "plms-v": (PNDMScheduler, dict(skip_prk_steps=True, prediction_type="v_prediction"), {}),
}


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wanted():
    cases = dict(MORE)
    for family, names in WANTED.items():
        known = load(SAMPLERS / f"{family}.py").CASES
        missing = [name for name in names.split() if name not in known]
        assert not missing, missing
        cases |= {name: known[name] for name in names.split()}
    return cases


def is_flow(scheduler):
    return type(scheduler).__name__.startswith("FlowMatch")


def add_noise(scheduler, image, noise, t):
    t = torch.as_tensor([t.item()], dtype=t.dtype)
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(image, t, noise)
    return scheduler.add_noise(image, noise, t)


def trajectory(base, scheduler, steps, strength, masked, options, seed):
    given = {"num_inference_steps": steps, **options.get("set", {})}
    if "mu" in options:
        given["mu"] = options["mu"]
    scheduler.set_timesteps(**given)
    scheduler.old = None
    if is_flow(scheduler):
        start = int(max(steps - min(steps * strength, steps), 0))
    else:
        start = max(steps - min(int(steps * strength), steps), 0)
    order = getattr(scheduler, "order", 1)
    timesteps = scheduler.timesteps[start * order:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start * order)
    drawn = base.Noise(seed)
    with drawn.installed(scheduler):
        noise, image = drawn(), drawn() * 0.7
        drawn.drawn.clear()
        if masked and strength == 1.0:
            x = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
        else:
            x = add_noise(scheduler, image, noise, timesteps[0])
        xs, outputs = [x], []
        for i, t in enumerate(timesteps):
            fed = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            outputs.append(base.network(fed, t, options.get("variance")))
            x = scheduler.step(outputs[-1], t, x, **options.get("step", {}))
            x = x.prev_sample if hasattr(x, "prev_sample") else x[0]
            if masked:
                kept = image
                if i < len(timesteps) - 1:
                    kept = add_noise(scheduler, kept, noise, timesteps[i + 1])
                x = (1 - MASK) * kept + MASK * x
            xs.append(x)
    return [image, noise], xs, outputs, drawn.drawn


def main():
    base = load(SAMPLERS / "record.py")
    base.SHAPE = SHAPE
    cases, f32 = [], []
    for number, (name, (cls, arguments, options)) in enumerate(wanted().items()):
        text = cls(**arguments).to_json_string()
        for steps in STEPS:
            for strength in STRENGTHS:
                for masked in (False, True):
                    seed = 1000 * number + 100 * steps + int(10 * strength) + masked
                    with contextlib.redirect_stderr(io.StringIO()):
                        recorded = trajectory(base, cls(**arguments), steps, strength, masked, options, seed)
                    _, _, outputs, noise = recorded
                    keep = {k: options[k] for k in ("kind", "eta", "mu", "config") if k in options}
                    case = {"name": f"{name}-{steps}-{strength}{'-mask' * masked}", "json": text, "steps": steps}
                    case |= {"strength": strength, "masked": masked, "evaluations": len(outputs), "noises": len(noise)}
                    cases.append(case | {"channels": int(outputs[0].shape[1])} | keep)
                    for tensors in recorded:
                        f32 += [t.detach().to(torch.float32).numpy().ravel() for t in tensors]
    assert all(np.isfinite(part).all() for part in f32)
    texts = np.frombuffer(json.dumps(cases).encode(), np.uint8)
    out = pathlib.Path(__file__).with_name("starts.npz")
    mask = MASK.numpy().ravel()
    np.savez_compressed(out, cases=texts, f32=np.concatenate(f32), mask=mask)
    print(f"{out}: {len(cases)} cases, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
