"""Small text-to-image pipelines with random weights, and the pictures that diffusers draws.

    python tests/golden/text_to_image/record.py

writes a folder per pipeline in the layout of `optimum-cli export onnx`, and `golden.npz` beside it:
the initial latents, the latents at the end and the decoded pictures, with and without a negative
prompt. Needs torch, transformers, diffusers and onnx.
"""

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
PROMPTS = ["a red circle", "It's two BLUE squares, and 3 more!"]
NEGATIVE = "green"
SIZE, LENGTH, STEPS, GUIDANCE = 8, 12, 6, 3.0


def seeded(seed, make):
    torch.manual_seed(seed)
    net = make().eval()
    with torch.no_grad():
        for p in net.parameters():
            if p.abs().max() == 0:
                p.normal_(std=0.1)
    return net


def tokenizer(folder):
    """CLIP's byte pairs with the words of the prompts, and the files of a slow tokenizer."""
    # a visible letter for every byte, as in GPT-2
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    letters = [chr(b) for b in visible] + [chr(256 + i) for i in range(len(hidden))]
    merges = ["r e", "re d</w>", "c i", "ci r", "c l", "cl e</w>", "cir cle</w>", "b l", "u e</w>",
              "bl ue</w>", "s q", "' s</w>"]
    vocab = letters + [letter + "</w>" for letter in letters]
    vocab += [m.replace(" ", "") for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(vocab))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False) + "\n")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    made = transformers.CLIPTokenizer(
        vocab=vocab, merges=[tuple(m.split()) for m in merges], model_max_length=LENGTH
    )
    settings = dict(model_max_length=LENGTH, pad_token="<|endoftext|>", bos_token="<|startoftext|>",
                    eos_token="<|endoftext|>", unk_token="<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return made


def text_encoder(seed, vocab, projection):
    config = transformers.CLIPTextConfig(
        vocab_size=vocab, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LENGTH, projection_dim=8,
        bos_token_id=vocab - 2, eos_token_id=vocab - 1, pad_token_id=vocab - 1,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return seeded(seed, lambda: kind(config))


def vae():
    return seeded(3, lambda: diffusers.AutoencoderKL(
        block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=2 * SIZE, scaling_factor=0.4,
    ))


def unet(width, **more):
    return seeded(4, lambda: diffusers.UNet2DConditionModel(
        sample_size=SIZE, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=width,
        attention_head_dim=4, norm_num_groups=4, **more,
    ))


def scheduler():
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )


def export(folder, net, inputs, outputs, free, call):
    """As optimum: named inputs and outputs, symbolic sizes."""

    class Traced(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, *values):
            return call(net, dict(zip(inputs, values)))

    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        torch.onnx.export(
            Traced(), tuple(inputs.values()), str(folder / "model.onnx"), dynamo=False,
            input_names=list(inputs), output_names=outputs, dynamic_axes=free, opset_version=17,
        )
    config = {k: v for k, v in dict(net.config.to_dict() if hasattr(net.config, "to_dict")
                                    else net.config).items() if not k.startswith("_")}
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str) + "\n")


def export_text(folder, net, projection):
    def call(net, given):
        out = net(given["input_ids"], output_hidden_states=True, return_dict=True)
        first = [out.text_embeds, out.last_hidden_state] if projection else [
            out.last_hidden_state, out.pooler_output]
        return tuple(first) + tuple(out.hidden_states)

    ids = torch.tensor([[5] * (LENGTH - 1) + [net.config.eos_token_id]] * 2)
    names = ["text_embeds", "last_hidden_state"] if projection else [
        "last_hidden_state", "pooler_output"]
    names += [f"hidden_states.{i}" for i in range(net.config.num_hidden_layers + 1)]
    batch = {0: "batch_size"}
    free = {"input_ids": {0: "batch_size", 1: "sequence_length"}} | {n: batch for n in names}
    export(folder, net, {"input_ids": ids}, names, free, call)


def export_rest(folder, pipe, extra):
    x = torch.randn(2, 4, SIZE, SIZE)
    image = {0: "batch_size", 2: "height", 3: "width"}
    text = torch.randn(2, LENGTH, pipe.unet.config.cross_attention_dim)
    inputs = dict(sample=x, timestep=torch.tensor(5.0), encoder_hidden_states=text) | extra
    free = {"sample": image, "encoder_hidden_states": {0: "batch_size", 1: "sequence_length"}}
    free |= {name: {0: "batch_size"} for name in extra}

    def unet_call(net, given):
        added = {k: given[k] for k in extra} or None
        return net(given["sample"], given["timestep"], given["encoder_hidden_states"],
                   added_cond_kwargs=added, return_dict=False)[0]

    export(folder / "unet", pipe.unet, inputs, ["out_sample"], free, unet_call)
    latents = {0: "batch_size", 2: "latent_height", 3: "latent_width"}
    export(folder / "vae_decoder", pipe.vae, dict(latent_sample=x), ["sample"],
           dict(latent_sample=latents), lambda net, g: net.decode(g["latent_sample"]).sample)
    pixels = torch.randn(2, 3, 2 * SIZE, 2 * SIZE)
    sizes = {0: "batch_size", 2: "sample_height", 3: "sample_width"}
    export(folder / "vae_encoder", pipe.vae, dict(sample=pixels), ["latent_parameters"],
           dict(sample=sizes), lambda net, g: net.encode(g["sample"]).latent_dist.parameters)
    pipe.scheduler.save_pretrained(folder / "scheduler")
    index = dict(_class_name=type(pipe).__name__, _diffusers_version=diffusers.__version__)
    if hasattr(pipe.config, "force_zeros_for_empty_prompt"):
        index["force_zeros_for_empty_prompt"] = pipe.config.force_zeros_for_empty_prompt
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def record(folder, pipe, extra):
    pipe.set_progress_bar_config(disable=True)
    export_rest(folder, pipe, extra)
    latents = torch.randn(2, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(7))
    arrays = dict(latents=latents.numpy())
    call = dict(prompt=PROMPTS, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
                height=2 * SIZE, width=2 * SIZE)
    for name, negative in (("plain", None), ("negative", [NEGATIVE] * 2)):
        end = pipe(latents=latents, negative_prompt=negative, output_type="latent", **call).images
        with torch.no_grad():
            image = pipe.vae.decode(end / pipe.vae.config.scaling_factor).sample
        arrays |= {f"{name}_latents": end.numpy(), f"{name}_image": image.numpy()}
    tokens = pipe.tokenizer(PROMPTS, padding="max_length", max_length=LENGTH, truncation=True)
    arrays["tokens"] = np.array(tokens.input_ids)
    mean = pipe.vae.encode(torch.from_numpy(arrays["plain_image"])).latent_dist.mean
    arrays["encoded"] = (mean * pipe.vae.config.scaling_factor).detach().numpy()
    np.savez_compressed(folder / "golden.npz", **arrays)


def main():
    for name in ("sd", "sdxl"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    tokens = tokenizer(HERE / "sd" / "tokenizer")
    encoder = text_encoder(1, len(tokens), False)
    export_text(HERE / "sd" / "text_encoder", encoder, False)
    record(HERE / "sd", diffusers.StableDiffusionPipeline(
        unet=unet(16), vae=vae(), text_encoder=encoder, tokenizer=tokens, scheduler=scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False), {})

    tokens = tokenizer(HERE / "sdxl" / "tokenizer")
    second = tokenizer(HERE / "sdxl" / "tokenizer_2")
    encoder = text_encoder(1, len(tokens), False)
    encoder_2 = text_encoder(2, len(tokens), True)
    export_text(HERE / "sdxl" / "text_encoder", encoder, False)
    export_text(HERE / "sdxl" / "text_encoder_2", encoder_2, True)
    net = unet(32, addition_embed_type="text_time", addition_time_embed_dim=8,
               projection_class_embeddings_input_dim=6 * 8 + 8, use_linear_projection=True)
    extra = dict(text_embeds=torch.randn(2, 8), time_ids=torch.randn(2, 6))
    record(HERE / "sdxl", diffusers.StableDiffusionXLPipeline(
        unet=net, vae=vae(), text_encoder=encoder, text_encoder_2=encoder_2, tokenizer=tokens,
        tokenizer_2=second, scheduler=scheduler()), extra)


if __name__ == "__main__":
    main()
