"""Records loops whose guidance is rescaled, or applies in an interval, as diffusers' guider runs them.

    python tests/golden/guidance/record.py     # needs torch and diffusers; any CPU

Replayed by runtime/tests/guidance.rs. The network is a stand-in: for a sample x [24, 4] with a label, at evaluation i,
x · w + classes[label] + times[i]. `ClassifierFreeGuidance` decides whether the unconditional half is asked for, mixes and
rescales. guidance.npz holds w, classes, times, noise [2, 24, 4], `cases` (JSON, bytes), the last samples of every case
[2, 24, 4], one after the other, and embeddings of the scale of guidance as LatentConsistencyModelPipeline makes them.
"""
import io
import json
import pathlib

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, LatentConsistencyModelPipeline
from diffusers.guiders import ClassifierFreeGuidance

STEPS, LABELS, NULL = 12, [1, 3], 4
SCHEDULERS = {"ddim": DDIMScheduler, "dpm-multistep": DPMSolverMultistepScheduler, "flow-euler": FlowMatchEulerDiscreteScheduler}
CASES = [
    # scale, rescale, from, to
    (1.0, 0.0, 0.0, 1.0), (3.0, 0.0, 0.0, 1.0), (3.0, 0.7, 0.0, 1.0), (7.5, 1.0, 0.0, 1.0), (0.0, 0.5, 0.0, 1.0),
    (3.0, 0.0, 0.25, 0.75), (3.0, 0.0, 0.0, 0.4), (3.0, 0.0, 0.6, 1.0), (4.0, 0.7, 0.2, 0.85), (3.0, 0.0, 0.0, 0.05),
]
EMBEDDED = [(8.5, 256), (1.0, 256), (3.5, 32), (7.5, 7)]


def main():
    rng = np.random.default_rng(24)
    draw = lambda *shape: torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    w, classes, times, noise = 0.2 * draw(4, 4), draw(5, 4), 0.5 * draw(STEPS, 4), draw(2, 24, 4)
    cases, samples = [], []
    for name, scheduler_class in SCHEDULERS.items():
        for scale, rescale, start, stop in CASES:
            scheduler = scheduler_class()
            guider = ClassifierFreeGuidance(guidance_scale=scale, guidance_rescale=rescale, start=start, stop=stop)
            scheduler.set_timesteps(STEPS)
            x, asked = noise * getattr(scheduler, "init_noise_sigma", 1.0), 0
            for i, t in enumerate(scheduler.timesteps):
                guider.set_state(step=i, num_inference_steps=STEPS, timestep=t)
                network = lambda labels: x @ w + classes[labels][:, None] + times[i]
                conditional, unconditional = network(LABELS), None
                if guider.num_conditions == 2:
                    unconditional, asked = network([NULL, NULL]), asked + 1
                x = scheduler.step(guider.forward(conditional, unconditional).pred, t, x).prev_sample
            cases.append(dict(sampler=name, config=json.dumps(dict(scheduler.config), default=list), scale=scale,
                              rescale=rescale, start=start, stop=stop, guided=asked))
            samples.append(x.numpy())
    embedded = [LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.tensor([scale - 1.0]), embedding_dim=width)
                for scale, width in EMBEDDED]
    out = io.BytesIO()
    text = lambda value: np.frombuffer(json.dumps(value).encode(), np.uint8)
    np.savez_compressed(out, w=w, classes=classes, times=times, noise=noise, cases=text(cases),
                        samples=np.stack(samples), embedded=text(EMBEDDED), embeddings=torch.cat(embedded, 1).numpy())
    pathlib.Path(__file__).with_name("guidance.npz").write_bytes(out.getvalue())
    print(len(cases), "cases,", len(out.getvalue()), "bytes")


main()
