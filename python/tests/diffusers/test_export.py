"""What `export_onnx` writes, against the model it wrote."""

import numpy as np
import pytest
import torch

import cachequant
import nets


def close(found, expected):
    expected = expected.detach().numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


NETS = {name: make for name, make in nets.PIPELINES.items()} | {"unet1d": nets.unet1d}


@pytest.mark.parametrize("name", NETS)
def test_files_compute_what_the_model_does_at_any_batch(name, tmp_path):
    made = NETS[name]()
    model = made if isinstance(made, torch.nn.Module) else getattr(made[0], made[1])
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


def test_a_controlnet_runs_beside_its_unet(tmp_path):
    pipe, _, call, _ = nets.controlnet()
    path = cachequant.export_onnx(pipe, tmp_path, tokens=nets.TOKENS)
    out = tmp_path / "c.cq"
    options = dict(steps=4, interval=1, quant="none", trust=True)
    cachequant.compile(path, out, with_models=[path / "controlnet"], **options)
    denoiser = cachequant.Denoiser(out)
    t, x = denoiser.info["timesteps"][0], call["latents"]
    text, image = call["prompt_embeds"], call["image"]
    given = dict(encoder_hidden_states=text, controlnet_cond=image)
    scale = {n: torch.tensor(0.5) for n in denoiser._inputs if n == "conditioning_scale"}
    found = denoiser(x, t, **given, **scale).sample.numpy()
    with torch.no_grad():
        time = torch.full((2,), t)
        down, mid = pipe.controlnet(
            x, time, **given, conditioning_scale=0.5 if scale else 1.0, return_dict=False
        )
        residuals = dict(down_block_additional_residuals=down, mid_block_additional_residual=mid)
        expected = pipe.unet(x, time, encoder_hidden_states=text, **residuals).sample
    close(found, expected)


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
