"""Calls that pipelines of diffusers made, replayed: the answers are those of PyTorch.

`diffusers/record.py` recorded them. NumPy alone is needed here.
"""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import cachequant

GOLDENS = Path(__file__).parent / "goldens"
NAMES = sorted(path.parent.name for path in GOLDENS.glob("*/calls.npz"))
FLOAT = dict(steps=10, interval=1, quant="none", any_steps=True, trust=True)


class Calls:
    """The recorded calls of one pipeline."""

    def __init__(self, name):
        arrays = np.load(GOLDENS / name / "calls.npz")
        self.timesteps = arrays["timesteps"]
        count = 1 + max(int(key.split("/")[0]) for key in arrays if key[0].isdigit())
        first = {k[2:]: arrays[k] for k in arrays if k.startswith("0/")}
        self.calls = []
        for i in range(count):
            own = {k.partition("/")[2]: arrays[k] for k in arrays if k.startswith(f"{i}/")}
            self.calls.append(nest(first | own))

    def replay(self, denoiser):
        """The answers of a denoiser, and those of PyTorch."""
        found, expected = [], []
        for call in self.calls:
            kwargs = call.get("kwargs", {})
            found.append(denoiser(*listed(call.get("args", [])), return_dict=False, **kwargs)[0])
            expected.append(call["result"])
        return np.stack(found), np.stack(expected)


def nest(flat):
    tree = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = value
    return unpacked(tree)


def unpacked(tree):
    """Dictionaries of numbers are lists."""
    if not isinstance(tree, dict):
        return tree
    tree = {key: unpacked(value) for key, value in tree.items()}
    return listed(tree) if all(key.isdigit() for key in tree) and tree else tree


def listed(tree):
    if isinstance(tree, list):
        return tree
    return [tree[str(i)] for i in range(len(tree))]


def compiled(name, folder, **options):
    path = folder / name
    if not path.exists():
        shutil.copytree(GOLDENS / name, path)
    out = folder / f"{name}{len(options)}.cq"
    cachequant.compile(path, out, force=True, **(FLOAT | options))
    return out


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_torch(name, tmp_path):
    calls = Calls(name)
    denoiser = cachequant.Denoiser(compiled(name, tmp_path), threads=1)
    denoiser.timesteps = calls.timesteps
    found, expected = calls.replay(denoiser)
    assert np.abs(found - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())
    # a second request begins by itself
    assert np.array_equal(calls.replay(denoiser)[0], found)


def test_threads_do_not_disturb_each_other(tmp_path):
    calls = Calls("sd")
    denoiser = cachequant.Denoiser(compiled("sd", tmp_path), threads=1)
    denoiser.timesteps = calls.timesteps
    expected, found = calls.replay(denoiser)[0], {}

    def run(i):
        found[i] = calls.replay(denoiser)[0]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert all(np.array_equal(found[i], expected) for i in range(2))
