"""Records what diffusers' image-to-image and inpainting pipelines make of a tiny U-Net, and the U-Net itself.

    python tests/golden/pipelines/record.py     # needs torch, diffusers, onnx; any CPU

unet.onnx is a UNet2DConditionModel of Stable Diffusion's kind with random weights. pipelines.npz holds, for each case of
`cases` (JSON, bytes), the image's latents, the noise that the pipeline drew, and the latents it returned, all
[1, 4, 8, 8] in `f32` one after the other; `mask` [1, 1, 8, 8], 1 is repainted; `condition` and `null`, the hidden
states of the prompt and of the empty prompt. Replayed by tests/image_to_image.rs.
"""
import io
import json
import pathlib
import warnings

import numpy as np
import onnx
import torch
from diffusers import (AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler,
                       PNDMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, UNet2DConditionModel,
                       UniPCMultistepScheduler)

HERE = pathlib.Path(__file__).parent
STABLE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
SCHEDULERS = {
    "ddim": (DDIMScheduler, dict(STABLE, clip_sample=False, set_alpha_to_one=False)),
    "pndm": (PNDMScheduler, dict(STABLE, skip_prk_steps=True, set_alpha_to_one=False)),
    "euler": (EulerDiscreteScheduler, STABLE),
    "dpm": (DPMSolverMultistepScheduler, dict(STABLE, use_karras_sigmas=True)),
    "unipc": (UniPCMultistepScheduler, STABLE),
    "heun": (HeunDiscreteScheduler, STABLE),
}
SIZE, STEPS = 8, 10


def unet():
    torch.manual_seed(0)
    net = UNet2DConditionModel(
        sample_size=SIZE, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(4, 8), norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8, attention_head_dim=2)
    return net.eval()


class Loop(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, sample, timestep, encoder_hidden_states):
        return self.net(sample, timestep, encoder_hidden_states, return_dict=False)[0]


def export(net):
    batch = {0: "N"}
    names = ["sample", "timestep", "encoder_hidden_states"]
    given = (torch.randn(2, 4, SIZE, SIZE), torch.tensor([5, 5]), torch.randn(2, 3, 8))
    file = io.BytesIO()
    torch.onnx.export(Loop(net), given, file, input_names=names, output_names=["out_sample"], opset_version=17, dynamo=False,
                      dynamic_axes={name: batch for name in [*names, "out_sample"]})
    model = onnx.load_from_string(file.getvalue())
    onnx.save(model, HERE / "unet.onnx")


class Drawn:
    """Stands for the pipelines' generator of noise."""

    def __init__(self, seed):
        self.rng, self.all = np.random.default_rng(seed), []

    def __call__(self, shape, **_kwargs):
        self.all.append(torch.from_numpy(self.rng.standard_normal(shape).astype(np.float32)))
        return self.all[-1]


def main():
    warnings.simplefilter("ignore")
    net = unet()
    export(net)
    torch.manual_seed(1)
    vae = AutoencoderKL(block_out_channels=(4, 4, 4, 4), down_block_types=("DownEncoderBlock2D",) * 4,
                        up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=2)
    condition, null, image = torch.randn(1, 3, 8), torch.randn(1, 3, 8), torch.randn(1, 4, SIZE, SIZE) * 0.8
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., 2:6, 3:8] = 1
    cases, f32 = [], []
    for number, (name, (cls, arguments)) in enumerate(SCHEDULERS.items()):
        parts = dict(vae=vae, text_encoder=None, tokenizer=None, unet=net, scheduler=cls(**arguments), safety_checker=None,
                     feature_extractor=None, requires_safety_checker=False)
        for kind, pipeline in (("image", StableDiffusionImg2ImgPipeline), ("mask", StableDiffusionInpaintPipeline)):
            run = pipeline(**parts)
            run.set_progress_bar_config(disable=True)
            module = __import__(pipeline.__module__, fromlist=["randn_tensor"])
            for strength in (0.3, 0.75, 1.0):
                for guidance in (1.0, 3.0):
                    draw = module.randn_tensor = Drawn(10 * number + int(10 * strength))
                    more = {}
                    if kind == "mask":
                        large = torch.nn.functional.interpolate(mask, scale_factor=8)
                        more = dict(mask_image=large, masked_image_latents=image * (1 - mask), height=SIZE * 8, width=SIZE * 8)
                    with torch.no_grad():
                        out = run(image=image, prompt_embeds=condition, negative_prompt_embeds=null, strength=strength,
                                  num_inference_steps=STEPS, guidance_scale=guidance, output_type="latent", **more).images
                    cases.append({"name": f"{name}-{kind}-{strength}-{guidance}", "scheduler": run.scheduler.to_json_string(),
                                  "masked": kind == "mask", "strength": strength, "guidance": guidance, "steps": STEPS})
                    assert len(draw.all) == 1 and out.isfinite().all(), (name, kind, len(draw.all))
                    f32 += [image, draw.all[0], out]
    np.savez_compressed(
        HERE / "pipelines.npz", cases=np.frombuffer(json.dumps(cases).encode(), np.uint8),
        f32=np.concatenate([t.numpy().ravel() for t in f32]), mask=mask.numpy(), condition=condition.numpy(), null=null.numpy())
    for file in ("unet.onnx", "pipelines.npz"):
        print(file, (HERE / file).stat().st_size, "bytes")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()
