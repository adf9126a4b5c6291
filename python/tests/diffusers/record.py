"""Records what pipelines of diffusers ask of their networks, and what PyTorch answers.

    python python/tests/diffusers/record.py

writes a folder per pipeline of `nets.py` into `python/tests/goldens`: the exported network, the
configuration of the scheduler, and `calls.npz` with the arguments and the answer of every call.
`python/tests/test_goldens.py` replays them without PyTorch.
"""

from pathlib import Path

import numpy as np
import onnx
import torch

import cachequant
import nets

STEPS = 4
FOLDER = Path(__file__).parents[1] / "goldens"


def flatten(path, value, into):
    """Arrays by the path of their argument: `1/added_cond_kwargs/text_embeds`."""
    if isinstance(value, dict):
        for key, item in value.items():
            flatten(f"{path}/{key}", item, into)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            flatten(f"{path}/{i}", item, into)
    elif isinstance(value, torch.Tensor):
        into[path] = value.detach().numpy()
    elif value is not None and not isinstance(value, bool):
        into[path] = np.asarray(value)


class Recorder(torch.nn.Module):
    """Stands for a network, and keeps what it was asked and what it answered."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, []

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.net, name)

    def forward(self, *args, **kwargs):
        result = self.net(*args, **kwargs)
        self.calls.append((args, kwargs, result[0]))
        return result


def strip(path):
    """Removes the stack traces that the exporter keeps: they name folders of this machine."""
    model = onnx.load(path, load_external_data=False)
    graphs = [model, model.graph, *model.graph.node, *model.graph.value_info, *model.functions]
    for holder in graphs + [n for f in model.functions for n in f.node]:
        del holder.metadata_props[:]
    onnx.save(model, path)


def record(name):
    pipe, attribute, call, _ = nets.PIPELINES[name]()
    size = (nets.SIZE, nets.SIZE) if name == "flux" else None
    folder = FOLDER / name
    options = dict(tokens=nets.TOKENS, size=size, control=name == "controlnet")
    cachequant.export_onnx(pipe, folder, **options)
    for path in folder.glob("*/model.onnx"):
        strip(path)
    recorder = Recorder(getattr(pipe, attribute))
    setattr(pipe, attribute, recorder)
    pipe.set_progress_bar_config(disable=True)
    pipe(num_inference_steps=STEPS, generator=torch.Generator().manual_seed(5), **call)
    arrays = {"timesteps": pipe.scheduler.timesteps.numpy()}
    for i, (args, kwargs, result) in enumerate(recorder.calls):
        flatten(f"{i}/args", args, arrays)
        flatten(f"{i}/kwargs", kwargs, arrays)
        arrays[f"{i}/result"] = result.detach().numpy()
    # what does not change is stored once
    first = {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith("0/")}
    for key in [k for k in arrays if k[0].isdigit() and not k.startswith("0/")]:
        before = first.get(key.partition("/")[2])
        if before is not None and np.array_equal(before, arrays[key]):
            del arrays[key]
    np.savez_compressed(folder / "calls.npz", **arrays)


if __name__ == "__main__":
    for name in nets.PIPELINES:
        record(name)
