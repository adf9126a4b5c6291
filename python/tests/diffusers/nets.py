"""Small networks with random weights, and the pipelines of diffusers around them."""

import torch
import diffusers
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DDPMPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)

SIZE, TOKENS = 8, 5


def seeded(make):
    torch.manual_seed(0)
    net = make().eval()
    # layers that begin as zeros would hide what is wrong with the rest
    with torch.no_grad():
        for p in net.parameters():
            if p.abs().max() == 0:
                p.normal_(std=0.1)
    return net


def unet(**more):
    return seeded(
        lambda: UNet2DConditionModel(
            sample_size=SIZE,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
            **more,
        )
    )


def unet1d():
    return seeded(
        lambda: diffusers.UNet1DModel(
            sample_size=16,
            in_channels=3,
            out_channels=3,
            extra_in_channels=0,
            time_embedding_type="positional",
            flip_sin_to_cos=False,
            use_timestep_embedding=True,
            freq_shift=1.0,
            block_out_channels=(8, 16),
            down_block_types=("DownResnetBlock1D", "DownResnetBlock1D"),
            up_block_types=("UpResnetBlock1D",),
            mid_block_type="MidResTemporalBlock1D",
            out_block_type="OutConv1DBlock",
            norm_num_groups=8,
            layers_per_block=1,
            downsample_each_block=False,
            act_fn="mish",
        )
    )


def scheduler():
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


_NONE = dict(vae=None, text_encoder=None, tokenizer=None)
_SD = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def ddpm():
    net = seeded(
        lambda: UNet2DModel(
            sample_size=SIZE,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            norm_num_groups=4,
        )
    )
    pipe = DDPMPipeline(net, diffusers.DDPMScheduler())
    return pipe, "unet", dict(batch_size=2, output_type="np"), "images"


def sd():
    pipe = StableDiffusionPipeline(unet=unet(), scheduler=scheduler(), **_NONE, **_SD)
    call = dict(
        prompt_embeds=draw(1, 2, TOKENS, 16),
        negative_prompt_embeds=draw(2, 2, TOKENS, 16),
        latents=draw(3, 2, 4, SIZE, SIZE),
        guidance_scale=3.0,
        output_type="latent",
    )
    return pipe, "unet", call, "images"


def sdxl():
    net = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        use_linear_projection=True,
    )
    pipe = StableDiffusionXLPipeline(
        unet=net, scheduler=scheduler(), **_NONE, text_encoder_2=None, tokenizer_2=None
    )
    call = dict(
        prompt_embeds=draw(1, 2, TOKENS, 16),
        negative_prompt_embeds=draw(2, 2, TOKENS, 16),
        pooled_prompt_embeds=draw(4, 2, 16),
        negative_pooled_prompt_embeds=draw(5, 2, 16),
        latents=draw(3, 2, 4, SIZE, SIZE),
        height=8 * SIZE,
        width=8 * SIZE,
        guidance_scale=3.0,
        output_type="latent",
    )
    return pipe, "unet", call, "images"


def controlnet():
    net = unet()
    control = seeded(
        lambda: ControlNetModel.from_unet(net, conditioning_embedding_out_channels=(8, 8, 8, 8))
    )
    pipe = StableDiffusionControlNetPipeline(
        unet=net, controlnet=control, scheduler=scheduler(), **_NONE, **_SD
    )
    call = sd()[2] | dict(image=draw(6, 2, 3, 8 * SIZE, 8 * SIZE).sigmoid())
    return pipe, "unet", call, "images"


class Decoder(torch.nn.Module):
    """Stands for a VAE where a pipeline always decodes."""

    def __init__(self):
        super().__init__()
        self.config = diffusers.configuration_utils.FrozenDict(
            scaling_factor=1.0, shift_factor=0.0, block_out_channels=(1, 1, 1, 1)
        )
        self.p = torch.nn.Parameter(torch.zeros(1))

    @property
    def dtype(self):
        return self.p.dtype

    @property
    def device(self):
        return self.p.device

    def decode(self, latents, **_):
        class Out:
            sample = latents[:, :3]

        Out.__getitem__ = lambda self, i: (self.sample,)[i]
        return Out()


def dit():
    net = seeded(
        lambda: DiTTransformer2DModel(
            sample_size=SIZE,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_embeds_ada_norm=1000,
        )
    )
    pipe = DiTPipeline(net, Decoder(), scheduler())
    call = dict(class_labels=[1, 2], guidance_scale=3.0, output_type="np")
    return pipe, "transformer", call, "images"


def pixart():
    net = seeded(
        lambda: PixArtTransformer2DModel(
            sample_size=SIZE,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=16,
            caption_channels=16,
        )
    )
    pipe = PixArtAlphaPipeline(
        transformer=net, scheduler=scheduler(), vae=Decoder(), text_encoder=None, tokenizer=None
    )
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    call = dict(
        prompt=None,
        negative_prompt=None,
        prompt_embeds=draw(1, 2, TOKENS, 16),
        prompt_attention_mask=mask,
        negative_prompt_embeds=draw(2, 2, TOKENS, 16),
        negative_prompt_attention_mask=mask.flip(0),
        latents=draw(3, 2, 4, SIZE, SIZE),
        height=8 * SIZE,
        width=8 * SIZE,
        use_resolution_binning=False,
        guidance_scale=3.0,
        output_type="latent",
    )
    return pipe, "transformer", call, "images"


def flow():
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def sd3():
    net = seeded(
        lambda: SD3Transformer2DModel(
            sample_size=SIZE,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            out_channels=4,
            pos_embed_max_size=16,
        )
    )
    pipe = StableDiffusion3Pipeline(
        transformer=net,
        scheduler=flow(),
        vae=Decoder(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    call = dict(
        prompt_embeds=draw(1, 2, TOKENS, 16),
        negative_prompt_embeds=draw(2, 2, TOKENS, 16),
        pooled_prompt_embeds=draw(4, 2, 16),
        negative_pooled_prompt_embeds=draw(5, 2, 16),
        latents=draw(3, 2, 4, SIZE, SIZE),
        height=8 * SIZE,
        width=8 * SIZE,
        guidance_scale=3.0,
        output_type="latent",
    )
    return pipe, "transformer", call, "images"


def flux():
    net = seeded(
        lambda: FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        )
    )
    pipe = FluxPipeline(
        transformer=net,
        scheduler=flow(),
        vae=Decoder(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )
    call = dict(
        prompt_embeds=draw(1, 2, TOKENS, 16),
        pooled_prompt_embeds=draw(4, 2, 16),
        latents=draw(3, 2, SIZE * SIZE // 4, 16),
        height=8 * SIZE,
        width=8 * SIZE,
        guidance_scale=3.0,
        output_type="latent",
    )
    return pipe, "transformer", call, "images"


PIPELINES = dict(
    ddpm=ddpm, sd=sd, sdxl=sdxl, controlnet=controlnet, dit=dit, pixart=pixart, sd3=sd3, flux=flux
)


def call(model, given):
    """The model's answer to inputs as they are called in an exported file."""
    from cachequant._export import _Traced

    with torch.no_grad():
        return _Traced.of(torch, model, list(given))(*given.values())[0]
