"""What `export_onnx` writes, against the model it wrote."""

import numpy as np
import pytest
import torch

import cachequant
import nets


def close(found, expected):
    expected = expected.detach().numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", nets.PIPELINES)
def test_files_compute_what_the_model_does_at_any_batch(name, tmp_path):
    pipe, attribute, _, _ = nets.PIPELINES[name]()
    model = getattr(pipe, attribute)
    size = (nets.SIZE, nets.SIZE) if name == "flux" else None
    path = cachequant.export_onnx(model, tmp_path, tokens=nets.TOKENS, size=size)
    out = tmp_path / "m.cq"
    cachequant.compile(path, out, steps=4, interval=1, quant="none", any_steps=True, trust=True)
    denoiser = cachequant.Denoiser(out)
    # fractional time steps, and a batch that the file was not traced with
    denoiser.timesteps = [801.25, 3.5] if name != "flux" else [0.80125, 0.0035]
    shapes = {i["name"]: i for i in denoiser.info["inputs"]}
    given = {}
    for i, (key, of) in enumerate(shapes.items()):
        shape = [3 if isinstance(d, str) else d for d in of["shape"]]
        integers = of["dtype"].startswith("i")
        given[key] = torch.full(shape, 7) if integers else nets.draw(i, *shape)
    time = denoiser._time_name
    for t in denoiser.timesteps:
        given[time] = torch.full((3,), t)
        found = denoiser(**given, return_dict=False)[0].numpy()
        close(found, nets.call(model, given))


def test_other_models_need_inputs(tmp_path):
    class Policy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(6 + 4 + 1, 6)

        def forward(self, sample, timestep, observation):
            x = torch.cat([sample.flatten(1), observation, timestep[:, None]], 1)
            return self.net(x).reshape(sample.shape)

    model = Policy()
    with pytest.raises(TypeError, match="Policy needs `inputs`"):
        cachequant.export_onnx(model, tmp_path)
    inputs = dict(sample=nets.draw(1, 2, 3, 2), timestep=torch.ones(2), observation=nets.draw(2, 2, 4))
    path = cachequant.export_onnx(model, tmp_path, inputs=inputs)
    out = tmp_path / "p.cq"
    cachequant.compile(path, out, steps=2, interval=1, quant="none", trust=True)
    assert cachequant.Denoiser(out).sample(3, cond={"observation": 0.5}).shape == (3, 3, 2)
