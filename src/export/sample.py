"""The loop of schedule.json, DDIM without noise: sample.py NOISE.npy SAMPLES.npy [--guidance S] [CONDITION=FILE.npy | CONDITION=1,2,3 ...]"""
import argparse
import numpy as np
from models import Models  # beside this file

parser = argparse.ArgumentParser(usage=__doc__)
parser.add_argument("noise"), parser.add_argument("samples"), parser.add_argument("conditions", nargs="*")
parser.add_argument("--guidance", type=float, default=Models.loop["guidance"])
args, loop, models = parser.parse_args(), Models.loop, Models()
ddim = loop["ddim"] or parser.error(f"this loop's sampler is {loop['sampler']['kind']}, or adds noise")
x = np.load(args.noise).astype("f4") * np.float32(loop["initial_scale"])
halves = models.begin(args.conditions, args.guidance != 1, len(x))
for step, (evaluation, update) in enumerate(zip(loop["evaluations"], ddim["updates"])):
    outs = []
    for values in halves:
        values |= {"sample": x * np.float32(evaluation["input_scale"]), "timestep": evaluation["timestep"], "step": step}
        models.run("prelude_steps", values)
        models.run("model" if "model" in models.models else "full" if evaluation["full"] else "cached", values)
        outs.append(values[loop["output"]][:, : x.shape[1]])
    out, (first, end) = outs[-1], loop["guidance_steps"]
    if len(outs) == 2 and first <= step < end:
        out = outs[0] + np.float32(args.guidance) * (outs[1] - outs[0])
        of, to = (np.std(o.reshape(len(o), -1), axis=1).reshape(-1, *[1] * (x.ndim - 1)) for o in (out, outs[1]))
        out = out * (1 + np.float32(loop["guidance_rescale"]) * (to / of - 1))
    s, n, next_signal, direction = (np.float32(update[k]) for k in ("signal", "noise", "next_signal", "direction"))
    image, epsilon = {"epsilon": lambda: ((x - n * out) / s, out), "sample": lambda: (out, (x - s * out) / n),
                      "v_prediction": lambda: (s * x - n * out, s * out + n * x)}[ddim["prediction"]]()
    x = next_signal * (np.clip(image, -ddim["clip"], ddim["clip"]) if ddim["clip"] else image) + direction * epsilon
    if loop["compensation"]:  # per channel
        scale, shift = (np.float32(loop["compensation"][k][step]).reshape(-1, *[1] * (x.ndim - 2)) for k in ("scale", "shift"))
        x = scale * x + shift
np.save(args.samples, x)
