#!/usr/bin/env python3
"""PyTorch as a contender of bench/gpu_peers.py: a process that keeps one model ready and answers orders, one JSON object a line.

    {"do": "prepare", "batch": 8}                                     compiles and warms up; what the device's memory held at most
    {"do": "time", "batch": 8, "seconds": 1.0}                        ms of single evaluations, each waited for
    {"do": "loop", "batch": 8, "timesteps": [...], "seconds": 2.0}    ms of whole DDIM loops, waited for at their end
    {"do": "answer", "batch": 8, "timestep": 900, "path": "y.npy"}    one evaluation of the inputs of gpu_models.feeds, as f32
"""
import argparse
import json
import os
import sys
import time
import traceback

import gpu_models


class Contender:
    def __init__(self, args):
        import torch
        self.torch, self.args = torch, args
        half = torch.float16 if args.device == "cuda" else torch.bfloat16
        self.dtype = torch.float32 if args.kind == "f32" else half
        denoiser = gpu_models.build(args.name, args.device, args.weights)
        if args.kind != "f32":
            denoiser = denoiser.to(self.dtype).to(memory_format=torch.channels_last)
        self.denoiser = torch.compile(denoiser, mode=args.mode, dynamic=False) if args.kind == "compile" else denoiser

    def inputs(self, batch, timestep=500):
        feed = gpu_models.feeds(self.args.name, batch, timestep)
        tensors = [self.torch.from_numpy(value).to(self.args.device) for value in feed.values()]
        tensors = [t.to(self.dtype) if t.is_floating_point() else t for t in tensors]
        if self.args.kind != "f32":
            tensors[0] = tensors[0].contiguous(memory_format=self.torch.channels_last)
        return tensors

    def wait(self):
        if self.args.device == "cuda":
            self.torch.cuda.synchronize()

    def milliseconds(self, run, seconds, most):
        """Times of single runs, three at least."""
        times, end = [], time.perf_counter() + seconds
        while len(times) < 3 or (len(times) < most and time.perf_counter() < end):
            start = time.perf_counter()
            run()
            self.wait()
            times.append((time.perf_counter() - start) * 1e3)
        return times

    def prepare(self, batch):
        if self.args.device == "cuda":
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()
        inputs = self.inputs(batch)
        for _ in range(3):
            self.denoiser(*inputs)
        self.wait()
        return {"device_memory_bytes": self.torch.cuda.max_memory_allocated() if self.args.device == "cuda" else None}

    def time(self, batch, seconds):
        inputs = self.inputs(batch)
        self.denoiser(*inputs)
        self.wait()
        return {"ms": self.milliseconds(lambda: self.denoiser(*inputs), seconds, 50)}

    def loop(self, batch, timesteps, seconds):
        """DDIM without noise, as diffusers does it by default: linear betas, samples clipped."""
        torch = self.torch
        kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
        levels = [float(kept[int(t)]) for t in timesteps] + [1.0]
        sample, timestep, *conditions = self.inputs(batch)
        channels = sample.shape[1]
        steps = [torch.full_like(timestep, int(t)) for t in timesteps]

        def run():
            x = sample
            for t, now, then in zip(steps, levels, levels[1:]):
                noise = self.denoiser(x, t, *conditions)[:, :channels]
                clean = ((x - (1 - now) ** 0.5 * noise) / now**0.5).clamp(-1, 1)
                noise = (x - now**0.5 * clean) / (1 - now) ** 0.5
                x = then**0.5 * clean + (1 - then) ** 0.5 * noise
            return x

        run()
        self.wait()
        return {"ms": self.milliseconds(run, seconds, 20)}

    def answer(self, batch, timestep, path):
        import numpy as np
        allowed = self.torch.backends.cudnn.allow_tf32
        # the answer that others are compared with is one of f32, also where torch's default is TF32
        self.torch.backends.cudnn.allow_tf32 = self.args.kind != "f32" and allowed
        out = self.denoiser(*self.inputs(batch, timestep))
        np.save(path, out.float().cpu().numpy())
        self.torch.backends.cudnn.allow_tf32 = allowed
        return {}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=gpu_models.NAMES)
    parser.add_argument("kind", choices=["f32", "half", "compile"], help="half: fp16 on a GPU, bf16 on a CPU; compile: the same, compiled")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--mode", default="max-autotune", help="of torch.compile")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--packages")
    args = parser.parse_args()
    sys.path += [args.packages] if args.packages else []
    # what libraries print is not to get between the answers
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import torch
    if args.threads:
        torch.set_num_threads(args.threads)
    contender = None
    with torch.inference_mode():
        for line in sys.stdin:
            order = json.loads(line)
            try:
                contender = contender or Contender(args)
                reply = getattr(contender, order.pop("do"))(**order)
            except Exception as e:  # the next order may well work
                traceback.print_exc()  # to the log
                lines = str(e).strip().splitlines() or [""]
                reply = {"error": f"{type(e).__name__}: {' ... '.join(dict.fromkeys([lines[0], lines[-1]]))[:400]}"}
            replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
