"""Makes tiny models with inputs that the loop fills by itself, and records their loops in ONNX Runtime.

    python tests/golden/fills/record.py     # needs numpy, onnx, onnxruntime, torch and diffusers; any CPU

Replayed by cli/tests/guidance.rs. `direct.onnx` returns the next sample and is told the step and the number of steps, as
the vector estimator of Supertonic is; `embedded.onnx` takes the scale of guidance as FLUX.1 does, `lcm.onnx` as latent
consistency models do. loops.npz holds their inputs as MODEL/INPUT, and the last samples as MODEL/CASE.
"""
import pathlib

import numpy as np
import onnx
import onnxruntime
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, LatentConsistencyModelPipeline
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).parent
rng = np.random.default_rng(24)
draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)


def model(name, inputs, output, nodes, constants):
    value = lambda n, shape, dtype=TensorProto.FLOAT: helper.make_tensor_value_info(n, dtype, shape)
    graph = helper.make_graph(
        [helper.make_node(op, ins.split(), outs.split(), **attributes) for op, ins, outs, attributes in nodes], name,
        [value(n, *what) for n, what in inputs.items()], [value(*output)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, HERE / f"{name}.onnx")
    return onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])


def direct(out):
    rows, column = np.array([-1, 1, 1]), np.array([-1, 6, 1])
    session = model(
        "direct",
        dict(noisy_latent=(["B", 6, "L"],), text_emb=(["B", 4, "T"],), style_ttl=(["B", 5, 6],), latent_mask=(["B", 1, "L"],),
             text_mask=(["B", 1, "T"],), current_step=(["B"],), total_step=(["B"],)),
        ("denoised_latent", ["B", 6, "L"]),
        [("Div", "current_step total_step", "at", {}), ("Reshape", "at rows", "t", {}), ("Reshape", "total_step rows", "n", {}),
         ("Mul", "text_emb text_mask", "masked", {}), ("ReduceMean", "masked", "mean", dict(axes=[2], keepdims=0)),
         ("MatMul", "mean w_text", "text", {}), ("ReduceMean", "style_ttl", "style", dict(axes=[1], keepdims=0)),
         ("Add", "text style", "both", {}), ("Reshape", "both column", "context", {}), ("MatMul", "w noisy_latent", "mixed", {}),
         ("Add", "mixed context", "moved", {}), ("Add", "moved t", "timed", {}), ("Tanh", "timed", "v", {}),
         ("Div", "v n", "step", {}), ("Add", "noisy_latent step", "next", {}), ("Mul", "next latent_mask", "denoised_latent", {})],
        dict(w=0.4 * draw(6, 6), w_text=draw(4, 6), rows=rows, column=column))
    batch, length, text = 2, 8, 3
    given = dict(text_emb=draw(batch, 4, text), style_ttl=draw(batch, 5, 6), latent_mask=np.ones((batch, 1, length), np.float32),
                 text_mask=np.ones((batch, 1, text), np.float32))
    given["latent_mask"][1, :, 6:], given["text_mask"][0, :, 2:] = 0, 0
    noise = draw(batch, 6, length)
    out |= {f"direct/{n}": v for n, v in given.items()} | {"direct/noise": noise}
    for steps in (1, 2, 5, 8):
        x = noise
        for step in range(steps):
            full = lambda v: np.full(batch, v, np.float32)
            x = session.run(None, dict(given, noisy_latent=x, current_step=full(step), total_step=full(steps)))[0]
        out[f"direct/{steps}"] = x


def embedded(out):
    session = model(
        "embedded", dict(hidden_states=(["N", 3, 8, 8],), timestep=(["N"],), guidance=(["N"],)), ("sample_out", ["N", 3, 8, 8]),
        [("Div", "timestep thousand", "t", {}), ("Unsqueeze", "t one", "t1", {}), ("Unsqueeze", "guidance one", "g1", {}),
         ("Concat", "t1 g1", "both", dict(axis=1)), ("MatMul", "both w", "mixed", {}), ("Tanh", "mixed", "tanh", {}),
         ("Reshape", "tanh shape", "row", {}), ("Mul", "hidden_states a", "scaled", {}), ("Add", "scaled row", "moved", {}),
         ("Tanh", "moved", "sample_out", {})],
        dict(thousand=np.float32(1000), one=np.array([1]), w=np.array([[0.9, -0.4, 0.3], [0.2, 0.1, -0.3]], np.float32),
             shape=np.array([-1, 3, 1, 1]), a=np.float32(0.7)))
    noise = draw(2, 3, 8, 8)
    out["embedded/noise"] = noise
    for guidance in (1.0, 3.5, 7.0):
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(6)
        x = torch.from_numpy(noise)
        for t in scheduler.timesteps:
            full = lambda v: np.full(2, v, np.float32)
            v = session.run(None, dict(hidden_states=x.numpy(), timestep=full(float(t)), guidance=full(guidance)))[0]
            x = scheduler.step(torch.from_numpy(v), t, x).prev_sample
        out[f"embedded/{guidance}"] = x.numpy()
    (HERE / "flow.json").write_text(FlowMatchEulerDiscreteScheduler().to_json_string())


def lcm(out):
    session = model(
        "lcm", dict(sample=(["N", 3, 8, 8],), timestep=(["N"], TensorProto.INT64), timestep_cond=(["N", 32],)),
        ("out_sample", ["N", 3, 8, 8]),
        [("Cast", "timestep", "float", dict(to=TensorProto.FLOAT)), ("Div", "float thousand", "t", {}), ("Unsqueeze", "t one", "t1", {}),
         ("MatMul", "timestep_cond w", "mixed", {}), ("Add", "mixed t1", "both", {}), ("Reshape", "both shape", "row", {}),
         ("Mul", "sample a", "scaled", {}), ("Add", "scaled row", "moved", {}), ("Tanh", "moved", "out_sample", {})],
        dict(thousand=np.float32(1000), one=np.array([1]), w=0.3 * draw(32, 3), shape=np.array([-1, 3, 1, 1]), a=np.float32(0.7)))
    noise = draw(2, 3, 8, 8)
    out["lcm/noise"] = noise
    for guidance in (1.0, 2.0, 8.5):
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(5)
        w = torch.tensor(guidance - 1).repeat(2)
        w = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, embedding_dim=32).numpy()
        x = torch.from_numpy(noise)
        for t in scheduler.timesteps:
            e = session.run(None, dict(sample=x.numpy(), timestep=np.full(2, int(t)), timestep_cond=w))[0]
            x = scheduler.step(torch.from_numpy(e), t, x).prev_sample
        out[f"lcm/{guidance}"] = x.numpy()


loops = {}
direct(loops), embedded(loops), lcm(loops)
np.savez_compressed(HERE / "loops.npz", **loops)
print({n: v.shape for n, v in loops.items()})
