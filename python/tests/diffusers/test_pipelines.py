"""The denoiser as `pipe.unet` and `pipe.transformer` of diffusers, against PyTorch."""

import threading

import diffusers
import numpy as np
import pytest
import torch

import cachequant
import nets

STEPS = 6
SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler-ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "dpm++2m": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "lcm": diffusers.LCMScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
}


def picture(pipe, call, result, steps=STEPS):
    generator = torch.Generator().manual_seed(5)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(num_inference_steps=steps, generator=generator, **call)
    images = getattr(out, result)
    return images.numpy() if isinstance(images, torch.Tensor) else np.asarray(images)


def compiled(folder, name, **options):
    """The pipeline, the name of its network, its call, and the artifact of its network."""
    pipe, attribute, call, result = nets.PIPELINES[name]()
    size = (nets.SIZE, nets.SIZE) if name == "flux" else None
    path = cachequant.export_onnx(
        pipe, folder / name, tokens=nets.TOKENS, size=size, control=name == "controlnet"
    )
    out = folder / f"{name}.cq"
    # one set of weights serves every scheduler: tables are made for the time steps that it visits
    options = dict(steps=10, interval=1, quant="none", any_steps=True, trust=True) | options
    cachequant.compile(path, out, **options)
    return pipe, attribute, call, result, out


def levels(found, expected):
    """The largest difference in steps of 255 per unit of the range -1 to 1."""
    return np.abs(found - expected).max() / max(1.0, np.abs(expected).max()) * 127.5


@pytest.mark.parametrize("name", nets.PIPELINES)
def test_pictures_are_those_of_torch(name, tmp_path):
    pipe, attribute, call, result, artifact = compiled(tmp_path, name)
    expected = picture(pipe, call, result)
    setattr(pipe, attribute, cachequant.Denoiser(artifact, pipe, threads=1))
    found = picture(pipe, call, result)
    assert levels(found, expected) < 0.1
    # another loop begins by itself, at another number of steps and another batch
    assert np.array_equal(found, picture(pipe, call, result))
    assert picture(pipe, call, result, steps=3).shape == expected.shape


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_any_scheduler_drives_it(scheduler, tmp_path):
    pipe, attribute, call, result, artifact = compiled(tmp_path, "sd")
    pipe.scheduler = SCHEDULERS[scheduler].from_config(pipe.scheduler.config)
    expected = picture(pipe, call, result)
    pipe.unet = cachequant.Denoiser(artifact, pipe, threads=1)
    assert levels(picture(pipe, call, result), expected) < 0.1


def test_a_cached_quantized_loop_is_the_one_of_sample(tmp_path):
    options = dict(steps=STEPS, interval=2, quant="w8a8", any_steps=False, guidance=3.0)
    texts = [nets.draw(seed, 2, nets.TOKENS, 16).numpy() for seed in (1, 2)]
    inputs = [dict(encoder_hidden_states=text) for text in texts]
    calibration = dict(encoder_hidden_states=nets.draw(8, 4, nets.TOKENS, 16).numpy())
    options |= dict(cond=calibration, null_cond=dict(encoder_hidden_states=texts[1][:1]))
    options |= dict(calib_samples=4)
    pipe, attribute, call, result, artifact = compiled(tmp_path, "sd", accept=True, **options)
    denoiser = cachequant.Denoiser(artifact, pipe)
    assert denoiser.info["cached"] and denoiser.info["quantized"]
    noise = call["latents"].numpy()
    whole = denoiser.sample(noise=noise, cond=inputs[0], null_cond=inputs[1], guidance=3.0)
    expected = picture(pipe, call, result)
    pipe.unet = denoiser
    found = picture(pipe, call, result)

    def error(a, b):
        return np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))

    # both are off from torch by the same cache and the same rounding; a code that flips by the
    # last bit of the scheduler's sums moves what follows
    assert error(found, whole) < 0.1 * error(whole, expected)


def test_threads_do_not_disturb_each_other(tmp_path):
    pipe, attribute, call, result, artifact = compiled(tmp_path, "sd")
    shared = cachequant.Denoiser(artifact, pipe, threads=1)
    pipe.unet = shared
    expected = picture(pipe, call, result)
    found = {}

    pipes = [nets.sd()[0] for _ in range(2)]
    for own in pipes:
        own.unet = shared

    def run(i):
        found[i] = picture(pipes[i], call, result)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert all(np.array_equal(found[i], expected) for i in range(2))


def test_image_to_image_begins_in_the_middle(tmp_path):
    pipe, attribute, call, result, artifact = compiled(tmp_path, "sd")
    kinds = dict(unet=pipe.unet, scheduler=pipe.scheduler, **nets._NONE, **nets._SD)
    kinds["vae"] = nets.Decoder()
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**kinds)
    call = call | dict(image=nets.draw(7, 2, 4, nets.SIZE, nets.SIZE), strength=0.5)
    del call["latents"]
    expected = picture(pipe, call, result)
    pipe.unet = cachequant.Denoiser(artifact, pipe, threads=1)
    assert levels(picture(pipe, call, result), expected) < 0.1


def test_what_it_cannot_do_is_refused(tmp_path):
    pipe, attribute, call, result, artifact = compiled(tmp_path, "sd")
    denoiser = cachequant.Denoiser(artifact, pipe)
    x, text = nets.draw(1, 2, 4, nets.SIZE, nets.SIZE), nets.draw(2, 2, nets.TOKENS, 16)
    pipe.scheduler.set_timesteps(10)
    t = pipe.scheduler.timesteps[0]

    def refused(words, *args, **kwargs):
        with pytest.raises(cachequant.RequestError, match=words):
            denoiser(*args, **kwargs)

    refused("lacks 'encoder_hidden_states'", x, t)
    refused("no input 'class_labels'", x, t, text, class_labels=torch.tensor([1, 1]))
    refused("cross_attention_kwargs", x, t, text, cross_attention_kwargs={"scale": 0.5})
    refused("is none of the loop's", x, 3, text)
    refused("the sample is", x[:, :, :4], t, text)
    denoiser(x, t, text)
    refused("changed in the middle", x, pipe.scheduler.timesteps[1], text + 1)
