"""Prints the reference numbers in the unit tests of src/eval: numpy, scipy and scikit-image.

    python tests/golden/make_metric_goldens.py
"""
import numpy as np
from scipy.linalg import sqrtm
from scipy.special import log_softmax
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def numbers(seed, count):
    out = []
    for _ in range(count):
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append((seed >> 40) / 2**24 - 0.5)
    return np.array(out, np.float32)


i = np.arange(3 * 16 * 20)
a = (i * 37 % 251).astype(np.uint8).reshape(3, 16, 20)
b = (i * 37 % 251 // 2 + i * 11 % 64).astype(np.uint8).reshape(3, 16, 20)
ssim = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)
print("psnr", repr(peak_signal_noise_ratio(a, b, data_range=255)))
print("ssim rgb", repr(structural_similarity(a, b, channel_axis=0, **ssim)))
print("ssim grey", repr(structural_similarity(a[0], b[0], **ssim)))


def inception(logits, split):
    scores = []
    for first in range(0, len(logits), split):
        logp = log_softmax(logits[first:first + split].astype(np.float64), axis=1)
        p = np.exp(logp)
        scores.append(np.exp((p * (logp - np.log(p.mean(0)))).sum(1).mean()))
    return np.mean(scores), np.std(scores)


logits = (numbers(11, 50 * 7) * np.float32(12)).reshape(50, 7)
print("inception", inception(logits, 5000), inception(logits, 20))


def features(seed, n, shift):
    x = numbers(seed, n * 6).reshape(n, 6)
    return x + np.roll(x, -1, axis=1) * np.float32(0.5) + np.float32(shift) * np.arange(6, dtype=np.float32)


def frechet(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * np.trace(sqrtm(s @ t)).real


for n in 40, 6, 4:
    print("frechet", n, repr(frechet(features(1, n, 0), features(2, n, 0.125))))


def distances(a, b):
    return ((a[:, None].astype(np.float64) - b[None]) ** 2).sum(2)


def coverage(points, queries, k=3):
    radii = np.sort(distances(points, points), axis=1)[:, k]
    return (distances(points, queries) <= radii[:, None]).any(0).mean()


reference = numbers(21, 400 * 5).reshape(400, 5)
generated = (numbers(22, 300 * 5) * np.float32(1.25) + np.float32(0.125)).reshape(300, 5)
print("precision, recall", coverage(reference, generated), coverage(generated, reference))
