#!/usr/bin/env python3
"""Times one evaluation in cqc and in ONNX Runtime float32, side by side.

    bench/compare.py [MODEL.onnx ...] [--batch 1 8] [--threads 2] [--rounds 7] [--cqc target/release/cqc]

Needs Python with numpy and onnxruntime (tests/oracles.txt). Per round each contender runs in a process of its own, one after the
other, one untimed step and then timed ones; the figures are medians over rounds, the ratio the median of per-round ratios, so that drift
of the machine cancels. Symbolic axis 0 is the batch; models of another fixed batch are skipped. Memory is the peak RSS.
"""
import argparse, json, os, statistics, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)


def worker(model, batch, threads):
    """Times ONNX Runtime in this process and prints {"ms": [...], "peak_rss_mb": x}."""
    import time
    import numpy as np
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feed = {}
    for i in session.get_inputs():
        shape = [batch if not isinstance(d, int) else d for d in i.shape]
        if shape and shape[0] != batch:
            raise SystemExit(f"{model}: its batch is {shape[0]}")
        kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}[i.type]
        feed[i.name] = rng.standard_normal(shape).astype(kind) if kind != np.int64 else np.ones(shape, np.int64)
    session.run(None, feed)
    times, end = [], time.perf_counter() + 1.0
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, feed)
        times.append((time.perf_counter() - start) * 1e3)
    rss = next(int(l.split()[1]) / 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
    print(json.dumps({"ms": times, "peak_rss_mb": rss}))


def last_json(command):
    p = subprocess.run(command, capture_output=True, text=True)
    lines = [l for l in p.stdout.splitlines() if l.startswith("{")]
    if p.returncode or not lines:
        return None, (p.stderr or p.stdout).strip().splitlines()[-1:]
    return json.loads(lines[-1]), None


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("models", nargs="*", default=[os.path.join(ROOT, "tests/models/ddpm-shapes32.onnx")])
    ap.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--rounds", type=int, default=7)
    ap.add_argument("--cqc", default=os.path.join(ROOT, "target/release/cqc"))
    ap.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.worker:
        return worker(a.models[0], a.batch[0], a.threads)
    print("| model | batch | onnxruntime ms | cqc ms | time, cqc : onnxruntime | peak MB onnxruntime | peak MB cqc |")
    print("|---|---|---|---|---|---|---|")
    for model in a.models:
        for batch in a.batch:
            ours = [a.cqc, "bench", model, "--batch", str(batch), "--threads", str(a.threads), "--json"]
            peer = [sys.executable, os.path.abspath(__file__), "--worker", model, "--batch", str(batch), "--threads", str(a.threads)]
            rounds, error = [], None
            for _ in range(a.rounds):
                o, error = last_json(ours)
                p, error = (None, error) if error else last_json(peer)
                if error:
                    break
                rounds.append((statistics.median(p["ms"]), statistics.median(o["ms"]), p["peak_rss_mb"], o["peak_rss_mb"]))
            if error:
                print(f"| {os.path.basename(model)} | {batch} | skipped: {error} |||||")
                continue
            med = lambda f: statistics.median(map(f, rounds))
            spread = lambda i: f"{med(lambda r: r[i]):.1f} ({min(r[i] for r in rounds):.1f}..{max(r[i] for r in rounds):.1f})"
            print(f"| {os.path.basename(model)} | {batch} | {spread(0)} | {spread(1)} | {med(lambda r: r[1] / r[0]):.2f} "
                  f"| {med(lambda r: r[2]):.0f} | {med(lambda r: r[3]):.0f} |", flush=True)


if __name__ == "__main__":
    main()
