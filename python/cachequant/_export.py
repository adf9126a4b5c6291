"""Export of PyTorch models to ONNX."""

import json
import os
import warnings
from pathlib import Path

BATCH = 2  # of the inputs that a model is traced with; it stays free in the file


def export_onnx(model, directory, *, inputs=None, size=None, tokens=None, control=False, opset=17):
    """Export a denoiser to ONNX in the form that `compile` takes without further options.

    The batch stays a free axis, and all other sizes are fixed. The time step is a float32 `[batch]`,
    so that schedulers with fractional time steps work. The inputs have the names of the arguments of
    the model's `forward`.

    Parameters
    ----------
    model : torch.nn.Module or diffusers.DiffusionPipeline
        A model, or a pipeline. Of a pipeline, the denoiser and the ControlNets are exported. The
        inputs of these classes are known: `UNet1DModel`, `UNet2DModel`, `UNet2DConditionModel`,
        `ControlNetModel`, `DiTTransformer2DModel`, `PixArtTransformer2DModel`,
        `SD3Transformer2DModel` and `FluxTransformer2DModel`. Other classes need `inputs`.
    directory : path
        The folder for `model.onnx` and `config.json`. Of a pipeline, the folder for the folders
        `unet` or `transformer`, `controlnet` and `scheduler`, as in diffusers and optimum.
    inputs : dict, optional
        Example inputs by the names of the arguments of `forward`, in their order. The first axis of
        a tensor is the batch if it is as long as the first axis of the first tensor.
    size : int or (int, int), optional
        The height and the width of the sample in (latent) pixels; by default the `sample_size` of
        the model. For `UNet1DModel`, the length.
    tokens : int, optional
        The length of the text states; by default the one of the pipeline's tokenizer, or 77.
    control : bool
        Give a `UNet2DConditionModel` the inputs that take the outputs of a ControlNet.
    opset : int
        The version of the ONNX operator set. `FluxTransformer2DModel` needs 18 or newer, and the
        package onnxscript.

    Returns
    -------
    pathlib.Path
        The argument for `compile`: the directory of a pipeline, or the file of a model.

    Raises
    ------
    TypeError
        The class of the model is not known, and there are no `inputs`.
    """
    import torch

    directory = Path(os.fspath(directory))
    if isinstance(model, torch.nn.Module):
        return _model(model, directory, inputs, size, tokens, control, opset)
    if not hasattr(model, "scheduler"):
        raise TypeError(f"{type(model).__name__} is neither a module of PyTorch nor a pipeline")
    tokenizer = getattr(model, "tokenizer", None)
    tokens = tokens or getattr(tokenizer, "model_max_length", None)
    name = "unet" if getattr(model, "unet", None) is not None else "transformer"
    nets = getattr(model, "controlnet", None)
    control = control or nets is not None
    denoiser = getattr(model, name)
    _model(denoiser, directory / name, inputs, size, tokens, control, opset)
    # a ControlNet does not know the size of its samples
    size = size or denoiser.config.sample_size
    if nets is not None:
        nets = getattr(nets, "nets", [nets])
        for i, net in enumerate(nets):
            folder = "controlnet" if i == 0 else f"controlnet_{i + 1}"
            _model(net, directory / folder, None, size, tokens, False, opset)
    model.scheduler.save_config(directory / "scheduler")
    return directory


def _model(model, directory, inputs, size, tokens, control, opset):
    import torch

    kind = type(model).__name__
    if inputs is None:
        if kind not in _INPUTS:
            known = ", ".join(sorted(_INPUTS))
            raise TypeError(f"{kind} needs `inputs`: known by themselves are {known}")
        inputs = _INPUTS[kind](torch, model, _Sizes(model, size, tokens))
    if control:
        if kind != "UNet2DConditionModel":
            raise TypeError(f"control: a ControlNet feeds a UNet2DConditionModel, not a {kind}")
        inputs |= _residuals(torch, model, inputs)
    batch = next(iter(inputs.values())).shape[0]
    names = list(inputs)
    traced = _Traced.of(torch, model, names)
    device = next(model.parameters()).device
    args = tuple(value.to(device) for value in inputs.values())
    training = model.training
    model.eval()
    rms_norm = torch.nn.functional.rms_norm
    try:
        torch.nn.functional.rms_norm = _rms_norm
        with torch.no_grad():
            results = traced(*args)
        outputs = ["out_sample"]
        if len(results) > 1:
            outputs = [f"down_block_res_sample_{i}" for i in range(len(results) - 1)]
            outputs.append("mid_block_res_sample")
        free = {n: {0: "batch"} for n, v in inputs.items() if v.ndim and v.shape[0] == batch}
        # tables of positions have no batch, whatever their length
        free = {n: axes for n, axes in free.items() if n not in ("img_ids", "txt_ids")}
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "model.onnx"
        common = dict(input_names=names, output_names=outputs)
        with warnings.catch_warnings():
            # of the tracer, about branches on sizes, which are fixed
            warnings.simplefilter("ignore")
            if kind in _WITHOUT_TRACER:
                of_batch = {0: torch.export.Dim("batch", min=1, max=65536)}
                shapes = tuple(of_batch if name in free else {} for name in names)
                common |= dict(dynamic_shapes=(shapes,), opset_version=max(opset, 18))
                torch.onnx.export(traced, args, str(path), dynamo=True, verbose=False, **common)
            else:
                axes = free | {name: {0: "batch"} for name in outputs}
                common |= dict(dynamic_axes=axes, opset_version=opset)
                torch.onnx.export(traced, args, str(path), dynamo=False, **common)
    finally:
        torch.nn.functional.rms_norm = rms_norm
        model.train(training)
    if hasattr(model, "config"):
        config = {k: v for k, v in dict(model.config).items() if not k.startswith("_use_default")}
        text = json.dumps(config, indent=2, default=str, sort_keys=True)
        (directory / "config.json").write_text(text + "\n")
    return path


def _rms_norm(x, normalized_shape, weight=None, eps=None):
    """RMS norm written with operators that every exporter supports."""
    import torch

    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    normed = x * torch.rsqrt(x.pow(2).mean(axes, keepdim=True) + eps)
    return normed if weight is None else normed * weight


class _Sizes:
    def __init__(self, model, size, tokens):
        self.given = size
        config = getattr(model, "config", {})
        size = size or config.get("sample_size") or 64
        self.height, self.width = (size, size) if isinstance(size, int) else tuple(size)
        self.tokens = tokens or 77


class _Traced:
    """Builds the traced module: it takes positional inputs, and returns a tuple of tensors."""

    @staticmethod
    def of(torch, model, names):
        class Traced(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, *values):
                given = dict(zip(names, values))
                added = {k: given.pop(k) for k in _ADDED if k in given}
                if not added and type(model).__name__ == "PixArtTransformer2DModel":
                    added = {"resolution": None, "aspect_ratio": None}
                if added:
                    given["added_cond_kwargs"] = added
                down = [given.pop(k) for k in list(given) if k.startswith(_DOWN)]
                if down:
                    given["down_block_additional_residuals"] = tuple(down)
                out = model(**given)
                if hasattr(out, "mid_block_res_sample"):
                    return (*out.down_block_res_samples, out.mid_block_res_sample)
                if hasattr(out, "sample"):
                    return (out.sample,)
                return tuple(out) if isinstance(out, (tuple, list)) else (out,)

        return Traced()


# the tracer of TorchScript writes the batch of their rotary embeddings into the file
_WITHOUT_TRACER = ("FluxTransformer2DModel",)
# arguments that models take in a dictionary
_ADDED = ("text_embeds", "time_ids", "resolution", "aspect_ratio")
_DOWN = "down_block_additional_residual_"


def _residuals(torch, model, inputs):
    """Return zeros with the shapes of the residuals that a ControlNet adds to a U-Net."""
    shapes = []
    hooks = []

    def seen(_, __, out):
        shapes.append(out.shape)

    def seen_down(_, __, out):
        shapes.extend(r.shape for r in out[1])

    hooks.append(model.conv_in.register_forward_hook(seen))
    hooks += [block.register_forward_hook(seen_down) for block in model.down_blocks]
    hooks.append(model.mid_block.register_forward_hook(seen))
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            _Traced.of(torch, model, list(inputs))(*(v.to(device) for v in inputs.values()))
    finally:
        for hook in hooks:
            hook.remove()
    zeros = {f"{_DOWN}{i}": torch.zeros(shape) for i, shape in enumerate(shapes[:-1])}
    return zeros | {"mid_block_additional_residual": torch.zeros(shapes[-1])}


def _time(torch):
    return torch.tensor([500.0] * BATCH)


def _unet(torch, model, sizes):
    x = torch.randn(BATCH, model.config.in_channels, sizes.height, sizes.width)
    inputs = {"sample": x, "timestep": _time(torch)}
    if model.config.num_class_embeds:
        inputs["class_labels"] = torch.zeros(BATCH, dtype=torch.int64)
    return inputs


def _unet1d(torch, model, sizes):
    length = model.config.sample_size if sizes.given is None else sizes.height
    x = torch.randn(BATCH, model.config.in_channels, length)
    return {"sample": x, "timestep": _time(torch)}


def _conditional_unet(torch, model, sizes):
    config = model.config
    inputs = _unet(torch, model, sizes)
    width = config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]
    inputs["encoder_hidden_states"] = torch.randn(BATCH, sizes.tokens, width)
    if config.get("time_cond_proj_dim"):
        inputs["timestep_cond"] = torch.randn(BATCH, config.time_cond_proj_dim)
    if config.addition_embed_type == "text_time":
        ids = 6
        texts = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
        inputs["text_embeds"] = torch.randn(BATCH, texts)
        inputs["time_ids"] = torch.randn(BATCH, ids)
    elif config.addition_embed_type is not None:
        raise TypeError(
            f"addition_embed_type {config.addition_embed_type!r} is not known: give `inputs`"
        )
    return inputs


def _controlnet(torch, model, sizes):
    inputs = _conditional_unet(torch, model, sizes)
    # its embedding halves the image once per block after the first
    scale = 2 ** (len(model.config.conditioning_embedding_out_channels) - 1)
    channels = model.config.conditioning_channels
    image = torch.rand(BATCH, channels, sizes.height * scale, sizes.width * scale)
    inputs["controlnet_cond"] = image
    inputs["conditioning_scale"] = torch.tensor(1.0)
    return inputs


def _dit(torch, model, sizes):
    x = torch.randn(BATCH, model.config.in_channels, sizes.height, sizes.width)
    labels = torch.zeros(BATCH, dtype=torch.int64)
    return {"hidden_states": x, "timestep": _time(torch), "class_labels": labels}


def _pixart(torch, model, sizes):
    config = model.config
    inputs = {
        "hidden_states": torch.randn(BATCH, config.in_channels, sizes.height, sizes.width),
        "encoder_hidden_states": torch.randn(BATCH, sizes.tokens, config.caption_channels),
        "timestep": _time(torch),
        "encoder_attention_mask": torch.ones(BATCH, sizes.tokens),
    }
    if model.use_additional_conditions:
        inputs["resolution"] = torch.tensor([[512.0, 512.0]] * BATCH)
        inputs["aspect_ratio"] = torch.tensor([[1.0]] * BATCH)
    return inputs


def _sd3(torch, model, sizes):
    config = model.config
    return {
        "hidden_states": torch.randn(BATCH, config.in_channels, sizes.height, sizes.width),
        "encoder_hidden_states": torch.randn(BATCH, sizes.tokens, config.joint_attention_dim),
        "pooled_projections": torch.randn(BATCH, config.pooled_projection_dim),
        "timestep": _time(torch),
    }


def _flux(torch, model, sizes):
    config = model.config
    # two by two latent pixels are one token
    rows, columns = sizes.height // 2, sizes.width // 2
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(columns)[None]
    inputs = {
        "hidden_states": torch.randn(BATCH, rows * columns, config.in_channels),
        "encoder_hidden_states": torch.randn(BATCH, sizes.tokens, config.joint_attention_dim),
        "pooled_projections": torch.randn(BATCH, config.pooled_projection_dim),
        "timestep": _time(torch) / 1000,
        "img_ids": ids.reshape(-1, 3),
        "txt_ids": torch.zeros(sizes.tokens, 3),
    }
    if config.guidance_embeds:
        inputs["guidance"] = torch.tensor([3.5] * BATCH)
    return inputs


_INPUTS = {
    "UNet1DModel": _unet1d,
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _conditional_unet,
    "ControlNetModel": _controlnet,
    "DiTTransformer2DModel": _dit,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}
