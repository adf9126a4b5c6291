#!/usr/bin/env python3
"""Does the loop's time follow its MACs? A cached artifact against the uncached one of the same model, interleaved.

python bench/loop.py CACHED.cq UNCACHED.cq [--batch 8] [--threads 2] [--rounds 7] [--cqc target/release/cqc]
"""
import argparse
import json
import statistics
import subprocess

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("cached")
parser.add_argument("uncached")
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--cqc", default="target/release/cqc")
args = parser.parse_args()


def bench(artifact):
    options = ["--batch", str(args.batch), "--threads", str(args.threads), "--repeat", "1", "--json", "--quiet"]
    return json.loads(subprocess.run([args.cqc, "bench", artifact, *options], check=True, capture_output=True).stdout)


rounds = [(bench(args.cached), bench(args.uncached)) for _ in range(args.rounds)]
cached, uncached = rounds[0]
full, steps = cached["full_steps"], cached["steps"]
prelude, whole = cached["macs_prelude"], cached["macs_full"]
work = (prelude + full * whole + (steps - full) * cached["macs_cached"]) / (prelude + steps * whole)
ratios = [u["loop_ms"] / c["loop_ms"] for c, u in rounds]
median = lambda key, side: statistics.median(r[side][key] for r in rounds)
print(f"{steps} steps, {full} full; batch {args.batch}, {args.threads} threads, {args.rounds} rounds, medians")
print(f"loop      {median('loop_ms', 0):9.1f} ms cached, {median('loop_ms', 1):9.1f} ms uncached")
print(f"step      {median('cached_step_ms', 0):9.1f} ms cached, {median('full_step_ms', 1):9.1f} ms uncached")
print(f"speed-up  {statistics.median(ratios):9.2f} ({min(ratios):.2f} to {max(ratios):.2f}), MACs predict {1 / work:.2f}: "
      f"{statistics.median(ratios) * work * 100:.0f} %")
