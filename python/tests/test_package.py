"""What needs NumPy alone: compilation, the whole loop, one evaluation, errors."""

import threading
from pathlib import Path

import numpy as np
import pytest

import cachequant

MODEL = Path(__file__).parents[2] / "tests/models/dit-dy23.onnx"
FLOAT = dict(steps=6, interval=1, quant="none", trust=True, sampler="ddim")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    out = tmp_path_factory.mktemp("a") / "dit.cq"
    cachequant.compile(MODEL, out, **FLOAT)
    return out


def test_the_loop_is_the_sum_of_its_evaluations(artifact):
    denoiser = cachequant.Denoiser(artifact, threads=1)
    labels, shape = [1, 2], denoiser.info["sample_shape"]
    noise = np.random.default_rng(0).standard_normal([2, *shape]).astype(np.float32)
    whole = denoiser.sample(noise=noise, labels=labels, guidance=1.0)
    again = denoiser.sample(2, noise=noise, labels=labels, guidance=1.0, batch=1)
    assert whole.shape == (2, *shape) and np.array_equal(whole, again)
    assert np.array_equal(whole, cachequant.Denoiser(artifact.read_bytes()).sample(
        noise=noise, labels=labels, guidance=1.0))
    seen = []
    for t in denoiser.info["timesteps"]:
        seen.append(denoiser(noise, t, class_labels=np.array(labels)).sample)
    assert len(seen) == 6 and all(np.isfinite(s).all() for s in seen)


def test_threads_have_loops_of_their_own(artifact):
    denoiser, found = cachequant.Denoiser(artifact, threads=1), {}
    expected = denoiser.sample(2, seed=3, labels=[1])

    def run(i):
        found[i] = denoiser.sample(2, seed=3, labels=[1])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert all(np.array_equal(found[i], expected) for i in range(3))


def test_callbacks_cancel_and_raise(artifact, tmp_path):
    denoiser = cachequant.Denoiser(artifact)
    with pytest.raises(cachequant.Cancelled):
        denoiser.sample(1, labels=[1], progress=lambda e, n, first, end: e < 2)

    def broken(*_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        denoiser.sample(1, labels=[1], progress=broken)
    cached = FLOAT | dict(interval=2, labels=[1, 2], calib_samples=4)
    with pytest.raises(cachequant.Cancelled):
        cachequant.compile(MODEL, tmp_path / "c.cq", progress=lambda *_: False, **cached)
    assert not (tmp_path / "c.cq").exists()


def test_errors_say_what_is_wrong(artifact, tmp_path):
    with pytest.raises(cachequant.ModelError, match="holds no exported denoiser"):
        cachequant.compile(tmp_path, tmp_path / "x.cq")
    with pytest.raises(ValueError, match="reconstruct"):
        cachequant.compile(MODEL, tmp_path / "x.cq", quant="none", reconstruct=True)
    with pytest.raises(ValueError, match="stepz"):
        cachequant.compile(MODEL, tmp_path / "x.cq", stepz=3)
    with pytest.raises(cachequant.Error, match="exists"):
        cachequant.compile(MODEL, artifact, **FLOAT)
    with pytest.raises(cachequant.ArtifactError):
        cachequant.Denoiser(MODEL)
    denoiser = cachequant.Denoiser(artifact)
    with pytest.raises(cachequant.RequestError, match="no condition 'text'"):
        denoiser.sample(1, cond={"text": 1.0})
    with pytest.raises(cachequant.RequestError):
        denoiser.sample(1)


def test_the_version_is_that_of_the_crate():
    text = (Path(__file__).parents[2] / "Cargo.toml").read_text()
    assert f'version = "{cachequant.__version__}"' in text
