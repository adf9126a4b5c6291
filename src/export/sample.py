"""The loop of schedule.json in numpy and ONNX Runtime: DDIM without noise.

python sample.py NOISE.npy SAMPLES.npy [--guidance S] [CONDITION=FILE.npy | CONDITION=1,2,3 ...]
"""
import argparse
import json
import pathlib
import sys

import numpy as np
import onnxruntime

here = pathlib.Path(__file__).resolve().parent
loop = json.loads((here / "schedule.json").read_text())
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("noise")
parser.add_argument("samples")
parser.add_argument("conditions", nargs="*", default=[])
parser.add_argument("--guidance", type=float, default=loop["guidance"])
args = parser.parse_args()
ddim = loop["ddim"] or sys.exit(f"sample.py runs DDIM without noise; this loop's sampler is {loop['sampler']['kind']}")

models = {m["name"]: (m, onnxruntime.InferenceSession(str(here / m["file"]))) for m in loop["models"]}
x = np.load(args.noise).astype(np.float32) * np.float32(loop["initial_scale"])
if loop["batch"]["fixed"] not in (None, len(x)):
    sys.exit(f"the models take {loop['batch']['fixed']} samples at once, {args.noise} has {len(x)}")


def run(name, values):
    """Runs a model on values of the loop and adds what it gives."""
    model, session = models[name]
    feeds = {}
    for port in model["inputs"]:
        shape = [size if isinstance(size, int) else len(x) for size in port["shape"]]
        kind = port["value"].split(".")[0]
        if kind == "condition" and port["value"] not in values:
            sys.exit(f"{port['name']} is missing: {port['name']}=FILE.npy")
        value = values.get(port["value"], np.zeros(shape))  # zeros: a cache that nothing has filled yet
        value = np.asarray(value).astype(port["dtype"])
        if kind in ("condition", "timestep"):  # one row for all samples
            value = np.broadcast_to(value, shape)
        feeds[port["name"]] = np.ascontiguousarray(value).reshape(value.shape)
    values.update(zip((port["value"] for port in model["outputs"]), session.run(None, feeds)))


given = {}
for name, _, value in (c.partition("=") for c in args.conditions):
    given["condition." + name] = np.load(value) if value.endswith(".npy") else np.array([int(v) for v in value.split(",")])
halves = [given]
if args.guidance != 1:
    null = loop["null_conditions"] or sys.exit("guidance needs null conditions, which this loop does not have")
    arrays = np.load(here / null["file"])
    halves = [given | {"condition." + name: arrays[name] for name in null["inputs"]}, given]
for values in halves:
    if "prelude" in models:
        run("prelude", values)

for step, (evaluation, update) in enumerate(zip(loop["evaluations"], ddim["updates"])):
    outputs = []
    for values in halves:
        values |= {"sample": x * np.float32(evaluation["input_scale"]), "timestep": evaluation["timestep"], "step": step}
        if "prelude_steps" in models:
            run("prelude_steps", values)
        run("model" if "model" in models else "full" if evaluation["full"] else "cached", values)
        outputs.append(values[loop["output"]][:, : x.shape[1]])
    output = outputs[0] + np.float32(args.guidance) * (outputs[-1] - outputs[0]) if len(outputs) == 2 else outputs[0]
    signal, noise, next_signal, direction = (np.float32(update[k]) for k in ("signal", "noise", "next_signal", "direction"))
    if ddim["prediction"] == "epsilon":
        image, epsilon = (x - noise * output) / signal, output
    elif ddim["prediction"] == "v_prediction":
        image, epsilon = signal * x - noise * output, signal * output + noise * x
    else:
        image, epsilon = output, (x - signal * output) / noise
    image = image if ddim["clip"] is None else np.clip(image, -ddim["clip"], ddim["clip"])
    x = next_signal * image + direction * epsilon
np.save(args.samples, x)
