"""Records a U-Net, two ControlNets, and what diffusers' pipeline makes of them.

    pip install torch diffusers onnx numpy
    python tests/golden/controlnet/record.py

Writes `unet.onnx`, `control1.onnx`, `control2.onnx` and `golden.npz` beside this script. The networks
are small and their weights random; those that ControlNets begin with as zeros are drawn as well. The
second ControlNet names its inputs and outputs in another way than the first.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)

HERE = Path(__file__).parent
SIZE, TOKENS, WIDTH = 8, 5, 16


def network():
    torch.manual_seed(7)
    return UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=4,
    ).eval()


def control(unet, seed):
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 8)).eval()
    with torch.no_grad():
        for p in net.parameters():
            if p.abs().max() == 0:
                p.normal_(std=0.15)
    return net


class WithResiduals(torch.nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, sample, timestep, encoder_hidden_states, *residuals):
        return self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            down_block_additional_residuals=residuals[:-1],
            mid_block_additional_residual=residuals[-1],
        ).sample


class Control(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, sample, timestep, encoder_hidden_states, controlnet_cond, conditioning_scale):
        out = self.net(sample, timestep, encoder_hidden_states, controlnet_cond, conditioning_scale)
        return (*out.down_block_res_samples, out.mid_block_res_sample)


def export(module, args, path, inputs, outputs):
    axes = {n: {0: "batch"} for n, a in zip(inputs, args) if a.ndim}
    torch.onnx.export(
        module,
        tuple(args),
        str(path),
        input_names=inputs,
        output_names=outputs,
        dynamic_axes=axes | {n: {0: "batch"} for n in outputs},
        opset_version=17,
        dynamo=False,
    )


def main():
    unet = network()
    nets = [control(unet, 8), control(unet, 9)]
    x = torch.randn(2, 4, SIZE, SIZE)
    t, text = torch.tensor([500, 500]), torch.randn(2, TOKENS, WIDTH)
    image, scale = torch.rand(2, 3, 8 * SIZE, 8 * SIZE), torch.tensor(1.0)
    with torch.no_grad():
        residuals = Control(nets[0])(x, t, text, image, scale)
    count = len(residuals) - 1
    down = [f"down_block_additional_residual_{i}" for i in range(count)]
    export(
        WithResiduals(unet),
        [x, t, text, *residuals],
        HERE / "unet.onnx",
        ["sample", "timestep", "encoder_hidden_states", *down, "mid_block_additional_residual"],
        ["out_sample"],
    )
    names = ["timestep", "encoder_hidden_states", "controlnet_cond", "conditioning_scale"]
    args = [x, t, text, image, scale]
    samples = [f"down_block_res_sample_{i}" for i in range(count)] + ["mid_block_res_sample"]
    export(Control(nets[0]), args, HERE / "control1.onnx", ["sample", *names], samples)
    names[0] = "t"
    plain = [f"output_{i}" for i in range(count + 1)]
    export(Control(nets[1]), args, HERE / "control2.onnx", ["noisy_latents", *names], plain)

    golden = {}
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    noise, positive, negative = draw(2, 4, SIZE, SIZE), draw(2, TOKENS, WIDTH), draw(1, TOKENS, WIDTH)
    images = [torch.rand((2, 3, 8 * SIZE, 8 * SIZE), generator=generator) for _ in nets]
    golden |= {"noise": noise, "text": positive, "null": negative}
    golden |= {"image1": images[0], "image2": images[1]}
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    for name, used, images, scale in (
        ("one", nets[0], images[0], 0.8),
        ("two", nets, images, [0.8, 0.5]),
    ):
        pipe = StableDiffusionControlNetPipeline(
            vae=None,
            text_encoder=None,
            tokenizer=None,
            unet=unet,
            controlnet=used,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        for guidance in (1.0, 3.0):
            golden[f"{name}_guidance{guidance:g}"] = pipe(
                image=images,
                prompt_embeds=positive,
                negative_prompt_embeds=negative.expand(2, -1, -1),
                num_inference_steps=10,
                guidance_scale=guidance,
                controlnet_conditioning_scale=scale,
                latents=noise.clone(),
                output_type="latent",
            ).images
    np.savez(HERE / "golden.npz", **{k: v.numpy() for k, v in golden.items()})


if __name__ == "__main__":
    main()
