"""Residual shifting, which diffusers does not have: written here in float64 from the formulas of arXiv:2307.12348.

Equation 1: x_t = x_0 + eta_t (y - x_0) + kappa sqrt(eta_t) noise. Equation 6: the mean of x_{t-1} is
eta_{t-1} / eta_t x_t + alpha_t / eta_t x_0 with alpha_t = eta_t - eta_{t-1}, its variance kappa^2 eta_{t-1} / eta_t alpha_t.
Equation 10: sqrt(eta_t) = sqrt(eta_1) b_0^beta_t with beta_t = ((t - 1) / (T - 1))^p (T - 1) and
b_0 = exp(log(eta_T / eta_1) / (2 (T - 1))). The network of the published models predicts x_0 and sees x_t / sqrt(kappa^2 eta_t + 1)
(of pixels x_t / (3 kappa sqrt(eta_t) + 1)).
"""
import importlib
import json

import numpy as np
import torch


class ResShift:
    order = 1

    def __init__(self, num_train_timesteps=15, kappa=2.0, power=0.3, min_noise_level=0.04, etas_end=0.99, normalize_input=True,
                 latent_flag=True, clip_sample=False, clip_sample_range=1.0):
        self.config = {key: value for key, value in locals().items() if key != "self"}
        first = min(min_noise_level / kappa, min_noise_level, 0.001 ** 0.5)
        count = num_train_timesteps
        b0 = np.exp(np.log(etas_end**2 / first**2) / (2 * (count - 1)))
        beta = (np.arange(count) / (count - 1)) ** power * (count - 1)
        self.all = (first * b0**beta) ** 2

    def to_json_string(self):
        return json.dumps({"_class_name": "ResShift", **self.config})

    def set_timesteps(self, num_inference_steps):
        count = len(self.all)
        self.visited = sorted({int(count / num_inference_steps * i) for i in range(num_inference_steps)})
        self.timesteps = torch.tensor(self.visited[::-1])
        self.init_noise_sigma = float(np.sqrt(self.config["kappa"] ** 2 * self.all[self.visited[-1]] + 1))

    def scale_model_input(self, x, t):
        c, eta = self.config, self.all[int(t)]
        if not c["normalize_input"]:
            return x
        by = np.sqrt(c["kappa"] ** 2 * eta + 1) if c["latent_flag"] else 3 * c["kappa"] * np.sqrt(eta) + 1
        return (x.double() / by).float()

    def step(self, output, t, x):
        c, i = self.config, self.visited.index(int(t))
        eta, before = self.all[int(t)], self.all[self.visited[i - 1]] if i > 0 else 0.0
        image = output.double()
        if c["clip_sample"]:
            image = image.clamp(-c["clip_sample_range"], c["clip_sample_range"])
        x = before / eta * x.double() + (eta - before) / eta * image
        if i > 0:
            noise = importlib.import_module("torch").randn(1)
            x = x + c["kappa"] * np.sqrt(before / eta * (eta - before)) * noise.double()
        return (x.float(),)


CASES = {
    "res-shift": (ResShift, {}, dict(steps=(1, 2, 4, 7, 15))),
    "res-shift-4": (ResShift, dict(num_train_timesteps=4), dict(steps=(4,))),
    "res-shift-kappa": (ResShift, dict(kappa=1.0, power=2.0, min_noise_level=0.2), dict(steps=(15,))),
    "res-shift-small": (ResShift, dict(kappa=0.1, etas_end=0.9, min_noise_level=0.02), dict(steps=(15,))),
    "res-shift-pixels": (ResShift, dict(latent_flag=False, clip_sample=True), dict(steps=(15,))),
    "res-shift-raw": (ResShift, dict(normalize_input=False, clip_sample=True, clip_sample_range=0.5), dict(steps=(15,))),
}
