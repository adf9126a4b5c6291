#!/usr/bin/env python3
"""Times cqc and PyTorch on one GPU, in turn, on denoisers of published sizes with random weights.

    bench/gpu_peers.py [ddpm dit sd15] [--batch 1 8 32] [--device cuda] [--minutes 9] [--rounds 3] [--cqc target/release/cqc] [--report OUT.json]

Contenders: cqc (w8a8, cached at an interval of 5, a loop of 10 steps; what is fitted for quality is left out), cqc-float (fp16 on a GPU, f32 on a
CPU; nothing cached), torch-f32 (eager; on a GPU with convolutions in TF32, torch's default), torch-half (eager, fp16 and channels last; bf16 on a CPU),
torch-compile (the same, compiled by mode max-autotune). Needs Python with torch, diffusers and onnx.

A step is one evaluation in full: for cqc as its loop runs it, with the sample's way to the device and back and its part of the sampler, for torch
the network alone on tensors that lie on the device. A loop is DDIM from noise to sample, for cqc with its preludes. Figures are medians over rounds of
medians; ratios are medians over rounds of torch's time to the contender's in the same round. SQNR is of one answer, at the first time step, against
torch in f32 without TF32. Memory is what was allocated on the device at most; for cqc weights, activations and requests.

Parts fail one by one, aloud; what does not fit into --minutes is left out, aloud. The last line says whether all parts were measured.
"""
import argparse
import collections
import glob
import json
import os
import platform
import queue
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time

import gpu_models

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
STEPS = 10
COMPILE = {
    "cqc": ["--quant", "w8a8", "--interval", "5", "--float-work", "0", "--calib-samples", "2", "--schedule", "uniform",
            "--correct", "none"],
    "cqc-float": ["--quant", "none", "--interval", "1"],
}
TORCH = {"torch-f32": "f32", "torch-half": "half", "torch-compile": "compile"}
# part of the time that is kept for measuring, and the most that one measurement may take
RESERVE, LONGEST = 0.3, 120.0


class Skipped(Exception):
    """Why a part was not measured."""


class Clock:
    """Counts down."""

    def __init__(self, minutes):
        self.begin, self.all = time.monotonic(), minutes * 60.0

    def left(self):
        return self.all - (time.monotonic() - self.begin)

    def say(self, text):
        print(f"[{time.monotonic() - self.begin:6.1f} s] {text}", flush=True)


class Worker:
    """A process of bench/gpu_worker.py."""

    def __init__(self, name, contender, folder, a):
        self.log = os.path.join(folder, f"{contender}.log")
        command = [sys.executable, os.path.join(HERE, "gpu_worker.py"), name, TORCH[contender], "--weights", os.path.join(folder, "weights.pt"),
                   "--device", a.device, "--mode", a.mode, *options(a, "threads", "packages")]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1)
        self.replies = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            self.replies.put(json.loads(line))
        self.replies.put({"error": f"its process ended: {last_line(self.log)}"})

    def send(self, what, **more):
        try:
            self.process.stdin.write(json.dumps({"do": what, **more}) + "\n")
        except OSError:
            raise Skipped(f"its process ended: {last_line(self.log)}") from None

    def reply(self, patience):
        try:
            found = self.replies.get(timeout=max(patience, 0.1))
        except queue.Empty:
            self.stop()
            raise Skipped(f"{max(patience, 0.1):.0f} s were not enough") from None
        if "error" in found:
            raise Skipped(found["error"])
        return found

    def ask(self, patience, what, **more):
        self.send(what, **more)
        return self.reply(patience)

    def stop(self):
        self.process.kill()
        self.process.wait()


def options(a, *names):
    """Those of this program's options that are given, for another program."""
    return [part for name in names if getattr(a, name) for part in (f"--{name}", str(getattr(a, name)))]


def last_line(path):
    lines = [line.strip() for line in open(path, errors="replace") if line.strip()]
    return lines[-1][:300] if lines else "without a word"


def call(command, clock, log, env=None):
    """Runs a program to its end; what it prints."""
    with open(log, "w") as errors:
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=max(clock.left(), 1.0), env=env)
        except subprocess.TimeoutExpired:
            raise Skipped(f"{os.path.basename(command[0])} {command[1]}: no time left") from None
    if done.returncode:
        raise Skipped(f"{os.path.basename(command[0])} {command[1]}: {last_line(log)}")
    return done.stdout


def nvrtc():
    """The folder of NVIDIA's compiler library: torch's wheels bring it, or CUDA's own installation has it."""
    if os.environ.get("CQC_NVRTC"):
        return os.environ["CQC_NVRTC"]
    packages = dict.fromkeys([sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"], *filter(os.path.isdir, sys.path)])
    places = [f"{p}/nvidia/{inner}/lib" for p in packages for inner in ("cu1?", "cuda_nvrtc")] + [f"{p}/torch/lib" for p in packages]
    places += ["/usr/local/cuda/lib64", "/usr/local/cuda-*/lib64", "/usr/local/cuda*/targets/*/lib"]
    found = [folder for place in places for folder in sorted(glob.glob(place)) if glob.glob(f"{folder}/libnvrtc.so*")]
    return found[0] if found else None


def target(a):
    """What `cqc compile --target` is to be told of this machine's GPU."""
    said = subprocess.run([a.cqc, "doctor", "--json"], capture_output=True, text=True).stdout
    found = re.search(r"\bsm_(\d+)\b[^\"]*driver", said)
    if not found:
        raise Skipped("cqc doctor finds no GPU")
    return f"cuda:sm_{found[1]}" + ("a" if found[1] == "90" else "")


def make_model(name, folder, a, clock):
    """model.onnx and weights.pt."""
    if not os.path.exists(os.path.join(folder, "made")):
        begin = time.monotonic()
        call([sys.executable, os.path.join(HERE, "gpu_models.py"), name, folder, "--device", a.device, *options(a, "packages")], clock, f"{folder}/model.log")
        open(os.path.join(folder, "made"), "w").close()
        clock.say(f"{name}: drawn and exported in {time.monotonic() - begin:.0f} s")


def make_artifact(name, contender, folder, a, clock):
    """A .cq, with kernels inside where there is a compiler for them."""
    import numpy as np
    path = os.path.join(folder, f"{contender}.cq")
    if os.path.exists(path) and os.path.getmtime(path) > os.path.getmtime(a.cqc):
        return path
    more = []
    for key, what in gpu_models.CONDITIONS[name].items():
        if isinstance(what, int):
            more += ["--labels", "1,2"]
        else:
            np.save(f"{folder}/{key}.npy", gpu_models.feeds(name, 2, 0, seed=2)[key])
            more += ["--cond", f"{key}={folder}/{key}.npy"]
    more = [] if COMPILE[contender][:2] == ["--quant", "none"] else more
    env = dict(os.environ)
    if a.device == "cuda" and nvrtc():
        env["CQC_NVRTC"] = nvrtc()
        more += ["--target", target(a)]
    begin = time.monotonic()
    command = [a.cqc, "compile", os.path.join(folder, "model.onnx"), "-o", path, "--force", "--steps", str(STEPS), *COMPILE[contender], *more]
    call([*command, *options(a, "threads")], clock, f"{folder}/{contender}.log", env)
    clock.say(f"{name}: {contender} compiled in {time.monotonic() - begin:.0f} s, {os.path.getsize(path) / 2**20:.0f} MiB")
    return path


def bench(path, batch, a, clock):
    """Steps and loops of an artifact."""
    out = call([a.cqc, "bench", path, "--device", a.device, "--artifact-kernels", "--batch", str(batch), "--json", "--quiet", *options(a, "threads")], clock, path + ".log")
    found = json.loads(out)
    return {"ms": found["ms"], "loop_ms": found["loop_ms"], "cached_ms": found["cached_step_ms"], "backend": found["backend"],
            "device_memory_bytes": found.get("device_memory_bytes")}


def our_answer(path, name, batch, timestep, folder, a, clock):
    """The first evaluation of an artifact on the inputs that torch gets."""
    import numpy as np
    known = {i["name"] for i in json.loads(call([a.cqc, "inspect", path, "--json"], clock, path + ".log"))["inputs"] if i["role"] != "timestep"}
    inputs = []
    for key, value in gpu_models.feeds(name, batch, timestep).items():
        if key in known:
            np.save(f"{folder}/in.{key}.npy", value)
            inputs += ["--input", f"{key}={folder}/in.{key}.npy"]
    out = f"{path}.npz"
    call([a.cqc, "run", path, "--device", a.device, "--artifact-kernels", *inputs, "-o", out, "--force", "--quiet", *options(a, "threads")], clock, path + ".log")
    found = np.load(out)
    return found[found.files[0]]


def sqnr(found, expected):
    import numpy as np
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(10 * np.log10((expected**2).sum() / max(((found - expected) ** 2).sum(), 1e-300)))


class Model:
    """All contenders of one model."""

    def __init__(self, name, a, clock):
        self.name, self.a, self.clock = name, a, clock
        self.folder = os.path.join(a.work, f"{name}-{a.device}")
        self.artifacts, self.workers, self.failures = {}, {}, []
        self.rows = []
        self.timesteps = [i * (1000 // STEPS) for i in reversed(range(STEPS))]

    def fail(self, what, why):
        self.failures.append(f"{self.name}, {what}: {why}")
        self.clock.say(f"NOT MEASURED: {self.name}, {what}: {why}")

    def attempt(self, what, part, *more):
        """The result of a part, or None and a line."""
        try:
            if self.clock.left() < 1:
                raise Skipped("no time left")
            return part(*more)
        except Skipped as why:
            self.fail(what, why)
        except Exception as e:
            self.fail(what, f"{type(e).__name__}: {e}")
        return None

    def run(self):
        os.makedirs(self.folder, exist_ok=True)
        try:
            make_model(self.name, self.folder, self.a, self.clock)
            # the one that takes longest to get ready begins while artifacts are made
            for contender in sorted((c for c in self.a.contenders if c in TORCH), key=lambda c: c != "torch-compile"):
                self.workers[contender] = Worker(self.name, contender, self.folder, self.a)
                self.workers[contender].send("prepare", batch=self.a.batch[0])
            for contender in (c for c in self.a.contenders if c in COMPILE):
                path = self.attempt(contender, make_artifact, self.name, contender, self.folder, self.a, self.clock)
                if path:
                    self.artifacts[contender] = path
            for index, batch in enumerate(self.a.batch):
                self.measure(batch, prepared=index == 0)
        except Skipped as why:
            self.fail("all of it", why)
        finally:
            for worker in self.workers.values():
                worker.stop()

    def measure(self, batch, prepared):
        memory = {}
        for contender, worker in list(self.workers.items()):
            def ready():
                if not prepared:
                    worker.send("prepare", batch=batch)
                return worker.reply(self.clock.left() - RESERVE * self.clock.all)
            found = self.attempt(f"{contender} at batch {batch}", ready)
            if found is None:
                if worker.process.poll() is not None:
                    self.workers.pop(contender)
                continue
            memory[contender] = found["device_memory_bytes"]
            self.clock.say(f"{self.name}: {contender} ready at batch {batch}")
        active = [c for c in self.a.contenders if c in memory or c in self.artifacts]
        quality = self.answers(batch, active)
        rounds = collections.defaultdict(list)
        for index in range(self.a.rounds):
            begin = time.monotonic()
            for contender in list(active):
                what = f"{contender} at batch {batch}, round {index + 1}"
                found = self.attempt(what, self.once, contender, batch)
                if found is None:
                    active.remove(contender)
                else:
                    rounds[contender].append(found)
            if self.clock.left() < 1.2 * (time.monotonic() - begin):
                self.clock.say(f"{self.name}: {index + 1} rounds at batch {batch}, there is no time for more")
                break
        for contender, found in rounds.items():
            self.rows.append(row(self.name, batch, contender, rounds, memory.get(contender), quality.get(contender)))
        self.clock.say(f"{self.name}: batch {batch} measured")

    def once(self, contender, batch):
        if contender in self.artifacts:
            return bench(self.artifacts[contender], batch, self.a, self.clock)
        worker = self.workers[contender]
        found = worker.ask(min(LONGEST, self.clock.left()), "time", batch=batch, seconds=self.a.seconds)
        loop = worker.ask(min(LONGEST, self.clock.left()), "loop", batch=batch, timesteps=self.timesteps, seconds=self.a.seconds)
        return {"ms": found["ms"], "loop_ms": statistics.median(loop["ms"])}

    def answers(self, batch, active):
        """Decibels against torch in f32, of the smallest batch only."""
        import numpy as np
        if batch != min(self.a.batch) or "torch-f32" not in active:
            return {}
        answers = {}
        for contender in active:
            path = os.path.join(self.folder, f"{contender}.npy")

            def one():
                if contender in self.artifacts:
                    return our_answer(self.artifacts[contender], self.name, batch, self.timesteps[0], self.folder, self.a, self.clock)
                self.workers[contender].ask(self.clock.left(), "answer", batch=batch, timestep=self.timesteps[0], path=path)
                return np.load(path)
            found = self.attempt(f"the answer of {contender}", one)
            if found is not None:
                answers[contender] = found
        expected = answers.pop("torch-f32", None)
        return {} if expected is None else {c: sqnr(found, expected) for c, found in answers.items()}


def row(name, batch, contender, rounds, memory, quality):
    mine = rounds[contender]
    steps = [statistics.median(r["ms"]) for r in mine]
    ratio = lambda other, key: statistics.median(key(b) / key(a) for a, b in zip(mine, rounds[other])) if rounds.get(other) else None
    step, loop = lambda r: statistics.median(r["ms"]), lambda r: r["loop_ms"]
    return {
        "model": name, "batch": batch, "contender": contender, "backend": mine[0].get("backend"), "rounds": len(mine),
        "step_ms": statistics.median(steps), "step_ms_least": min(steps), "step_ms_most": max(steps),
        "cached_ms": statistics.median(r["cached_ms"] for r in mine) if mine[0].get("cached_ms") else None,
        "loop_ms": statistics.median(r["loop_ms"] for r in mine),
        "times_faster_than": {other: ratio(other, step) for other in TORCH}, "loop_times_faster_than": {other: ratio(other, loop) for other in TORCH},
        "sqnr_db": quality, "device_memory_bytes": memory or mine[0].get("device_memory_bytes"),
    }


def table(rows):
    head = ["model", "batch", "contender", "step ms (rounds)", "x f32", "x half", "x compile", "cached ms", "loop ms", "loop x f32", "loop x compile", "SQNR dB",
            "device MB"]
    number = lambda v, digits=2: "" if v is None else f"{v:.{digits}f}"
    lines = [head]
    for r in rows:
        step, loop = r["times_faster_than"], r["loop_times_faster_than"]
        lines.append([r["model"], str(r["batch"]), r["contender"], f"{r['step_ms']:.3f} ({r['step_ms_least']:.3f}..{r['step_ms_most']:.3f})",
                      *(number(step[c]) for c in TORCH), number(r["cached_ms"], 3), number(r["loop_ms"]), number(loop["torch-f32"]),
                      number(loop["torch-compile"]), number(r["sqnr_db"], 1), number(r["device_memory_bytes"] and r["device_memory_bytes"] / 1e6, 0)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    form = lambda line: "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
    return "\n".join([form(lines[0]), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(form, lines[1:])])


def machine(a):
    """Versions and names that belong to the numbers."""
    ask = "import json, torch; c = torch.cuda; print(json.dumps({'torch': torch.__version__, 'gpu': c.get_device_name(0) if c.is_available() else None}))"
    found = {"python": platform.python_version(), "cpu_cores": os.cpu_count(), "device": a.device}
    try:
        found |= json.loads(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout)
        found["cqc"] = subprocess.run([a.cqc, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit", "--format=csv,noheader"]
            found["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError, ValueError) as e:
        found["incomplete"] = str(e)
    return found


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("models", nargs="*", help="ddpm, dit, sd15; ddpm unless given")
    ap.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    ap.add_argument("--contenders", nargs="+", choices=[*COMPILE, *TORCH], default=[*COMPILE, *TORCH])
    ap.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    ap.add_argument("--minutes", type=float, default=9.0, help="in which all of it ends")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--seconds", type=float, default=1.0, help="of torch's timed runs, per round, batch and kind")
    ap.add_argument("--mode", default="max-autotune", help="of torch.compile")
    ap.add_argument("--threads", type=int, help="of the CPU")
    ap.add_argument("--cqc", default=os.path.join(ROOT, "target/release/cqc"))
    ap.add_argument("--work", default=os.path.join(tempfile.gettempdir(), "cqc-gpu-peers"), help="where models and artifacts are kept")
    ap.add_argument("--packages", help="one more folder to look for Python packages in, behind all others")
    ap.add_argument("--report", help="also write what was measured as JSON")
    a = ap.parse_args()
    names = a.models or ["ddpm"]
    if unknown := [name for name in names if name not in gpu_models.NAMES]:
        ap.error(f"no model {', '.join(unknown)}")
    sys.path += [a.packages] if a.packages else []
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(a.work, "inductor"))
    clock = Clock(a.minutes)
    about = machine(a)
    clock.say(", ".join(f"{k} {v}" for k, v in about.items()))
    models = []
    for name in names:
        models.append(Model(name, a, clock))
        models[-1].run()
    rows, failures = [r for m in models for r in m.rows], [f for m in models for f in m.failures]
    if a.report:
        with open(a.report, "w") as out:
            json.dump({"machine": about, "options": vars(a), "rows": rows, "not_measured": failures}, out, indent=1)
    print(table(rows))
    for failure in failures:
        print(f"NOT MEASURED: {failure}")
    if failures:
        sys.exit(1)
    print(f"all parts measured in {clock.all - clock.left():.0f} s")


if __name__ == "__main__":
    main()
