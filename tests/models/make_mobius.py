"""Writes mobius-dit and mobius-unet, a model and what ONNX Runtime makes of it each: `python make_mobius.py`

Needs mobius-onnx 0.1.0, an exporter that builds the graph itself instead of tracing torch, and onnxruntime. Weights are random.
"""

import os

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from mobius._builder import build_from_module
from mobius._diffusers_configs import UNet2DConfig
from mobius.models.dit import DiTConfig, DiTTransformer2DModel
from mobius.models.unet import UNet2DConditionModel

HERE = os.path.dirname(os.path.abspath(__file__))
SIZES = {"height": 8, "width": 8, "sequence_length": 5}


def weights(model, rng):
    for v in model.graph.initializers.values():
        if v.const_value is None:
            shape = [int(d) for d in v.shape]
            value = rng.standard_normal(shape) * 0.7 / max(1, np.prod(shape[1:])) ** 0.5
            if "norm" in v.name and v.name.endswith("weight"):
                value = 1 + 0.1 * rng.standard_normal(shape)
            v.const_value = ir.tensor(value.astype(v.dtype.numpy()), name=v.name)


def make(name, module, config):
    rng = np.random.default_rng(0)
    (model,) = build_from_module(module, config, "denoising").values()
    weights(model, rng)
    path = os.path.join(HERE, name + ".onnx")
    ir.save(model, path)
    proto = onnx.load(path)
    del proto.graph.value_info[:]
    for info in proto.graph.input:
        for d in info.type.tensor_type.shape.dim:
            if d.dim_param in SIZES:
                d.dim_value = SIZES[d.dim_param]
    for info in proto.graph.output:
        info.type.tensor_type.ClearField("shape")
    onnx.save(proto, path)
    inputs = {
        "sample": rng.standard_normal((2, 4, 8, 8)).astype(np.float32),
        "timestep": np.array([37, 512], np.int64),
        "encoder_hidden_states": rng.standard_normal((2, 5, 12)).astype(np.float32),
    }
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = {o.name: y for o, y in zip(session.get_outputs(), session.run(None, inputs))}
    arrays = {"in_" + k: v for k, v in inputs.items()} | {"out_" + k: v for k, v in outputs.items()}
    np.savez(os.path.join(HERE, name + ".check.npz"), **arrays)


make(
    "mobius-dit",
    *(lambda c: (DiTTransformer2DModel(c), c))(
        DiTConfig(
            hidden_size=24, num_layers=2, num_attention_heads=2, cross_attention_dim=12, caption_channels=12, sample_size=8
        )
    ),
)
make(
    "mobius-unet",
    *(lambda c: (UNet2DConditionModel(c), c))(
        UNet2DConfig(
            block_out_channels=(8, 8),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=12,
            attention_head_dim=2,
            norm_num_groups=4,
            sample_size=8,
        )
    ),
)
