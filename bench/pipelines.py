#!/usr/bin/env python3
"""Time per picture of diffusers' own pipelines, with three networks in turn in one process.

The pipeline and its scheduler are those of diffusers. Its network is PyTorch's, ONNX Runtime's
session over the exported file, or `cachequant.Denoiser`, in float without a cache and as `compile`
makes it by default. Weights are random. Every round runs all of them, in turn; the table gives the
median over the rounds of the time per picture, and how many times faster than PyTorch each one is
(the median of the ratios within a round).

    python bench/pipelines.py [--models ddpm,sd,dit] [--steps 20] [--rounds 5] [--threads 2]

Needs the wheel of python/, torch, diffusers, onnx and onnxruntime.
"""
import argparse
import statistics
import tempfile
import time
from pathlib import Path

import diffusers
import numpy as np
import onnxruntime
import torch

import cachequant


def ddpm():
    """The network of DDPM for CIFAR-10, 35.7 M parameters, 32x32 pixels."""
    net = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
    )
    pipe = diffusers.DDIMPipeline(net, diffusers.DDIMScheduler())
    return pipe, "unet", dict(batch_size=1, output_type="np"), {}


def sd():
    """The topology of Stable Diffusion 1.5 at 2/5 of its width, 32x32 latent pixels, guided."""
    net = diffusers.UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(128, 256, 512, 512),
        cross_attention_dim=256,
        attention_head_dim=8,
    )
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipe = diffusers.StableDiffusionPipeline(
        unet=net,
        scheduler=scheduler,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    call = dict(
        prompt_embeds=torch.randn(1, 77, 256),
        negative_prompt_embeds=torch.randn(1, 77, 256),
        guidance_scale=5.0,
        output_type="latent",
    )
    # the pipeline applies guidance: both halves are ordinary samples of the compiled loop
    return pipe, "unet", call, dict(cond=dict(encoder_hidden_states=torch.randn(16, 77, 256)))


class _Latents(torch.nn.Module):
    """Stands for a VAE: the time of decoding is not the network's."""

    def __init__(self):
        super().__init__()
        self.config = diffusers.configuration_utils.FrozenDict(scaling_factor=1.0)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def decode(self, latents, **_):
        sample = type("Output", (), dict(sample=latents[:, :3]))
        return sample()


def dit():
    """DiT-S/2, 33 M parameters, 32x32 latent pixels, guided."""
    net = diffusers.DiTTransformer2DModel(
        sample_size=32,
        in_channels=4,
        out_channels=8,
        num_layers=12,
        num_attention_heads=6,
        attention_head_dim=64,
        num_embeds_ada_norm=1000,
    )
    pipe = diffusers.DiTPipeline(net, _Latents(), diffusers.DDIMScheduler(clip_sample=False))
    call = dict(class_labels=[1], guidance_scale=4.0, output_type="np")
    return pipe, "transformer", call, dict(labels=[1, 1000])


MODELS = dict(ddpm=ddpm, sd=sd, dit=dit)


class Session:
    """ONNX Runtime as the network of a pipeline."""

    def __init__(self, file, like, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.config, self.dtype, self.device = like.config, like.dtype, like.device

    def __call__(self, sample, timestep, *rest, return_dict=True, **named):
        given = dict(zip(self.inputs, (sample, timestep, *rest)))
        given |= {n: v for n, v in named.items() if n in self.inputs}
        feed = {}
        for name, value in given.items():
            array = value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            if name == self.inputs[1]:
                array = np.broadcast_to(array.astype(np.float32).reshape(-1), len(sample)).copy()
            feed[name] = array
        out = torch.from_numpy(self.session.run(None, feed)[0])
        return diffusers.models.unets.unet_2d.UNet2DOutput(out) if return_dict else (out,)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, onnxruntime "
          f"{onnxruntime.__version__}, cachequant {cachequant.__version__}; {args.threads} threads, "
          f"{args.steps} steps, {args.rounds} rounds")
    print("| pipeline | network | s per picture (smallest..largest) | times faster than torch |")
    print("|---|---|---|---|")
    for name in args.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            compare(name, Path(folder), args)


def compare(name, folder, args):
    torch.manual_seed(0)
    pipe, attribute, call, options = MODELS[name]()
    pipe.set_progress_bar_config(disable=True)
    net = getattr(pipe, attribute).eval()
    path = cachequant.export_onnx(pipe, folder / "exported")
    # the weights are random, so quality is no matter here: the artifacts are accepted as they are
    common = dict(steps=args.steps, trust=True, accept=True, **options)
    cachequant.compile(path, folder / "float.cq", interval=1, quant="none", **common)
    cachequant.compile(path, folder / "default.cq", **common)

    def denoiser(file):
        setattr(pipe, attribute, net)
        return cachequant.Denoiser(folder / file, pipe, threads=args.threads)

    networks = {
        "torch": net,
        "onnxruntime": Session(path / attribute / "model.onnx", net, args.threads),
        "cachequant, float, no cache": denoiser("float.cq"),
        "cachequant, default": denoiser("default.cq"),
    }
    times = {kind: [] for kind in networks}
    for round in range(args.rounds + 1):
        for kind, network in networks.items():
            # registering a module is what diffusers does on assignment, too
            setattr(pipe, attribute, network)
            begin = time.perf_counter()
            pipe(num_inference_steps=args.steps, generator=torch.Generator().manual_seed(1), **call)
            if round > 0:  # the first one opens what is opened once
                times[kind].append(time.perf_counter() - begin)
    for kind, taken in times.items():
        ratio = statistics.median(t / s for t, s in zip(times["torch"], taken))
        print(f"| {name} | {kind} | {statistics.median(taken):.2f} ({min(taken):.2f}.."
              f"{max(taken):.2f}) | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
