"""The loop of schedule.json in numpy and ONNX Runtime: DDIM without noise.

python sample.py NOISE.npy SAMPLES.npy [--guidance S] [CONDITION=FILE.npy | CONDITION=1,2,3 ...]
"""
import argparse, json, pathlib
import numpy as np, onnxruntime

here = pathlib.Path(__file__).resolve().parent
loop = json.loads((here / "schedule.json").read_text())
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("noise"), parser.add_argument("samples"), parser.add_argument("conditions", nargs="*")
parser.add_argument("--guidance", type=float, default=loop["guidance"])
args = parser.parse_args()
ddim = loop["ddim"] or parser.error(f"this loop's sampler is {loop['sampler']['kind']}, or adds noise")
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.x64quantprecision", "1")  # else sums of u8 times s8 overflow on x86 without VNNI
if loop["qdq"] != "none" and loop["layout"] == "if":  # where that option does not reach
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
models = {m["name"]: (m, onnxruntime.InferenceSession(str(here / m["file"]), options)) for m in loop["models"]}
x = np.load(args.noise).astype("f4") * np.float32(loop["initial_scale"])


def run(name, values):  # runs a model on values of the loop and adds what it gives
    def feed(port):
        value, shape = values.get(port["value"]), [n if isinstance(n, int) else len(x) for n in port["shape"]]
        if value is None and port["value"].startswith("condition."):
            parser.error(f"{port['name']} is missing: {port['name']}=FILE.npy")
        value = np.zeros(shape) if value is None else np.asarray(value)  # zeros: a cache that nothing has filled yet
        one_row = port["value"].startswith(("condition.", "timestep"))  # for all samples
        return np.array(np.broadcast_to(value, shape) if one_row else value, port["dtype"])
    model, session = models.get(name, (None, None))
    if model:
        given = session.run(None, {port["name"]: feed(port) for port in model["inputs"]})
        values.update(zip((port["value"] for port in model["outputs"]), given))


halves = [{"condition." + name: np.load(value) if value.endswith(".npy") else np.array(value.split(","), int)
           for name, _, value in (c.partition("=") for c in args.conditions)}]
if args.guidance != 1:
    null = np.load(here / (loop["null_conditions"] or parser.error("guidance needs null conditions, which this loop lacks"))["file"])
    halves.insert(0, halves[0] | {"condition." + name: null[name] for name in null})
for values in halves:
    run("prelude", values)
for step, (evaluation, update) in enumerate(zip(loop["evaluations"], ddim["updates"])):
    for values in halves:
        values |= {"sample": x * np.float32(evaluation["input_scale"]), "timestep": evaluation["timestep"], "step": step}
        run("prelude_steps", values)
        run("model" if "model" in models else "full" if evaluation["full"] else "cached", values)
    first, last = (half[loop["output"]][:, : x.shape[1]] for half in (halves[0], halves[-1]))
    out = first + np.float32(args.guidance) * (last - first) if len(halves) == 2 else last
    s, n, next_signal, direction = (np.float32(update[k]) for k in ("signal", "noise", "next_signal", "direction"))
    image, epsilon = {"epsilon": lambda: ((x - n * out) / s, out), "sample": lambda: (out, (x - s * out) / n),
                      "v_prediction": lambda: (s * x - n * out, s * out + n * x)}[ddim["prediction"]]()
    x = next_signal * (np.clip(image, -ddim["clip"], ddim["clip"]) if ddim["clip"] else image) + direction * epsilon
    if loop["compensation"]:  # per channel
        scale, shift = (np.float32(loop["compensation"][k][step]).reshape(-1, *[1] * (x.ndim - 2)) for k in ("scale", "shift"))
        x = scale * x + shift
np.save(args.samples, x)
