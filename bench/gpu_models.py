#!/usr/bin/env python3
"""Denoisers of published sizes with random weights: as torch modules, as inputs for them, as ONNX.

    bench/gpu_models.py NAME FOLDER [--device cuda]     NAME: ddpm (CIFAR-10 U-Net, 35.7 M), dit (DiT-XL/2, 675 M), sd15 (Stable Diffusion 1.5's U-Net, 860 M)

FOLDER gets model.onnx and weights.pt, the same weights for torch. They are torch's own initialisation; what that sets to zero or leaves at one is
drawn again, so that no layer passes nothing on. The batch of the ONNX file is symbolic. Needs torch, diffusers and onnx.
"""
import argparse
import os
import sys

NAMES = ("ddpm", "dit", "sd15")
SEED = 20260

# inputs beside `sample` and `timestep`: shape behind the batch, or the number of labels
CONDITIONS = {"ddpm": {}, "dit": {"class_labels": 1000}, "sd15": {"encoder_hidden_states": (77, 768)}}
SAMPLES = {"ddpm": (3, 32, 32), "dit": (4, 32, 32), "sd15": (4, 64, 64)}


def bare(name):
    """The network of diffusers, as its authors configured it."""
    import diffusers
    if name == "ddpm":
        attention = "AttnDownBlock2D", "AttnUpBlock2D"
        return diffusers.UNet2DModel(
            sample_size=32, block_out_channels=(128, 256, 256, 256), norm_eps=1e-6, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
            attention_head_dim=None, down_block_types=["DownBlock2D", attention[0], "DownBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "UpBlock2D", attention[1], "UpBlock2D"])
    if name == "dit":
        return diffusers.DiTTransformer2DModel(num_layers=28, num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8,
                                               sample_size=32, patch_size=2, num_embeds_ada_norm=1000)
    return diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def build(name, device="cpu", weights=None):
    """The module, called with `sample`, `timestep` and the conditions in order; its result is the prediction alone. Weights are drawn, or read."""
    import torch
    # what these import at first use is not to be made on the device
    from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel  # noqa: F401

    class Denoiser(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network
            self.names = list(CONDITIONS[name])

        def forward(self, sample, timestep, *conditions):
            return self.network(sample, timestep=timestep, **dict(zip(self.names, conditions)), return_dict=False)[0]

    torch.manual_seed(SEED)
    with torch.device(device), torch.no_grad():
        denoiser = Denoiser(bare(name)).eval().requires_grad_(False)
        if weights:
            denoiser.load_state_dict(torch.load(weights, map_location=device, weights_only=True))
            return denoiser
        for parameter in denoiser.parameters():
            first = parameter.flatten()[0]
            if bool((parameter == first).all()) and float(first) in (0.0, 1.0):
                spread = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
                parameter.add_(torch.randn_like(parameter), alpha=spread)
    return denoiser


def feeds(name, batch, timestep, seed=1):
    """Inputs by name, as arrays: noise, the same time step for all, labels or noise as conditions."""
    import numpy as np
    rng = np.random.default_rng(seed)
    inputs = {"sample": rng.standard_normal((batch, *SAMPLES[name]), dtype=np.float32), "timestep": np.full(batch, timestep, np.int64)}
    for key, what in CONDITIONS[name].items():
        drawn = rng.integers(0, what, batch) if isinstance(what, int) else rng.standard_normal((batch, *what), dtype=np.float32)
        inputs[key] = drawn
    return inputs


def export(name, denoiser, path):
    """Writes ONNX; weights that do not fit one file of 2 GiB lie in files beside it."""
    import torch
    inputs = feeds(name, 2, 500)
    device = next(denoiser.parameters()).device
    arguments = tuple(torch.from_numpy(value).to(device) for value in inputs.values())
    with torch.no_grad():
        torch.onnx.export(denoiser, arguments, path, dynamo=False, opset_version=17, do_constant_folding=False, input_names=list(inputs),
                          output_names=["out"], dynamic_axes={key: {0: "batch"} for key in [*inputs, "out"]})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("folder")
    parser.add_argument("--device", default="cpu", help="where weights are drawn and the model is traced")
    parser.add_argument("--packages", help="one more folder to look for Python packages in, behind all others")
    args = parser.parse_args()
    sys.path += [args.packages] if args.packages else []
    import torch
    os.makedirs(args.folder, exist_ok=True)
    denoiser = build(args.name, args.device)
    torch.save(denoiser.state_dict(), os.path.join(args.folder, "weights.pt"))
    export(args.name, denoiser, os.path.join(args.folder, "model.onnx"))
    print(f"{args.name}: {sum(p.numel() for p in denoiser.parameters()) / 1e6:.1f} M parameters", file=sys.stderr)


if __name__ == "__main__":
    main()
