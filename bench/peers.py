#!/usr/bin/env python3
"""Times one evaluation in cqc and in other runtimes, in turn on the same machine.

    bench/peers.py [MODEL.onnx ...] [--contenders ort cqc ...] [--batch 1 8] [--threads 2] [--rounds 5] [--cqc target/release/cqc]

Contenders: ort, ort-int8 (static, per channel, QDQ), ort-dynamic (integers only in MatMul and Gemm), ov, ov-bf16, ov-int8 (OpenVINO, the last
quantized by NNCF), cqc, cqc-bf16 and cqc-int8 (--quant bf16 and w8a8, nothing cached, full steps). Needs Python with numpy and onnxruntime (tests/oracles.txt), for ov* openvino
and for ov-int8 nncf. What has to be made once (quantized models) is kept in --work.

Per round each contender runs in a process of its own, one after the other: one untimed evaluation and then timed ones. Figures are medians over
rounds, ratios medians over rounds of the first contender's time to the other's in the same round, so that drift of the machine cancels: larger is faster.
SQNR is of one answer on noise that nobody was calibrated on, against ONNX Runtime in float32. Memory is the peak of resident memory.
A symbolic axis 0 is the batch; models of another fixed batch are skipped.
"""
import argparse, json, logging, os, statistics, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
CALIBRATION = 16
# the artifact's loop, and the step whose time every contender's answer is asked at
STEPS, STEP = 4, 1


def feeds(model, batch, seed, count, timestep=None):
    """Inputs: noise, time steps (drawn unless given), label 1."""
    import numpy as np
    import onnx
    initial = onnx.load(model, load_external_data=False).graph
    constants = {t.name for t in initial.initializer}
    rng = np.random.default_rng(seed)
    for _ in range(count):
        feed = {}
        for i in initial.input:
            if i.name in constants:
                continue
            dims = [d.dim_value or batch for d in i.type.tensor_type.shape.dim]
            if dims and dims[0] != batch:
                raise SystemExit(f"{model}: its batch is {dims[0]}")
            kind = onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type)
            if len(dims) >= 3:
                feed[i.name] = rng.standard_normal(dims).astype(kind)
            elif "t" in i.name and not any(word in i.name for word in ("label", "text")):
                feed[i.name] = np.full(dims, rng.integers(0, 1000) if timestep is None else timestep, kind)
            else:
                feed[i.name] = np.ones(dims, kind)
        yield feed


def prepared(contender, model, a):
    """The file that a contender loads, made if it is not there."""
    base = os.path.join(a.work, os.path.splitext(os.path.basename(model))[0])
    paths = {"ort-int8": base + ".ort.onnx", "ort-dynamic": base + ".dynamic.onnx", "ov-int8": base + ".ov.xml", "cqc-bf16": base + ".bf16.cq",
             "cqc-int8": base + ".cq"}
    path = paths.get(contender, model)
    if os.path.exists(path):
        return path
    os.makedirs(a.work, exist_ok=True)
    samples = lambda: feeds(model, a.batch[0], 0, CALIBRATION)
    if contender == "cqc-bf16":
        subprocess.run([a.cqc, "compile", model, "-o", path, "--quant", "bf16", "--interval", "1", "--steps", str(STEPS)], check=True)
    elif contender == "cqc-int8":
        labels = [n for f in feeds(model, a.batch[0], 0, 1) for n, v in f.items() if v.ndim == 1 and n in ("y", "class_labels", "labels")]
        subprocess.run([a.cqc, "compile", model, "-o", path, "--quant", "w8a8", "--interval", "1", "--steps", str(STEPS), "--calib-samples", str(CALIBRATION),
                        *(["--labels", "1"] if labels else []), *a.compile_options.split()], check=True)
    elif contender == "ov-int8":
        import nncf, openvino
        logging.getLogger("nncf").setLevel(logging.WARNING)
        transformer = nncf.ModelType.TRANSFORMER if "dit" in os.path.basename(model) else None
        read = openvino.Core().read_model(model)
        openvino.save_model(nncf.quantize(read, nncf.Dataset(list(samples())), subset_size=CALIBRATION, model_type=transformer), path, compress_to_fp16=False)
    else:
        from onnxruntime import quantization as q
        from onnxruntime.quantization.shape_inference import quant_pre_process
        if contender == "ort-dynamic":
            q.quantize_dynamic(model, path, per_channel=True, weight_type=q.QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
        else:
            class Reader(q.CalibrationDataReader):
                def __init__(self):
                    self.left = samples()

                def get_next(self):
                    return next(self.left, None)

            plain = path + ".plain.onnx"
            quant_pre_process(model, plain, skip_symbolic_shape=True)
            q.quantize_static(plain, path, Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True, activation_type=q.QuantType.QUInt8,
                              weight_type=q.QuantType.QInt8, op_types_to_quantize=["Conv", "Gemm", "MatMul"])
    return path


def worker(contender, path, a):
    """Times a peer in this process and prints {"ms": [...], "peak_rss_mb": x}; its answer goes to a file."""
    import numpy as np
    feed = dict(np.load(a.feed))
    if contender.startswith("ort"):
        import onnxruntime as ort
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = a.threads, 1, 3
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        run = lambda: session.run(None, feed)[0]
    else:
        import openvino
        hints = {"INFERENCE_NUM_THREADS": a.threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1,
                 "INFERENCE_PRECISION_HINT": "bf16" if contender == "ov-bf16" else "f32"}
        request = openvino.Core().compile_model(path, "CPU", hints).create_infer_request()
        run = lambda: request.infer(feed)[0]
    np.save(a.answer, run())
    times, end = [], time.perf_counter() + 1.0
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    rss = next(int(l.split()[1]) / 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
    print(json.dumps({"ms": times, "peak_rss_mb": rss}))


def last_json(command):
    p = subprocess.run(command, capture_output=True, text=True)
    lines = [l for l in p.stdout.splitlines() if l.startswith("{")]
    if p.returncode or not lines:
        raise SystemExit(f"{' '.join(command)}: {(p.stderr or p.stdout).strip().splitlines()[-1:]}")
    return json.loads(lines[-1])


def measure(contender, path, batch, answer, a):
    common = ["--batch", str(batch), "--threads", str(a.threads)]
    if contender.startswith("cqc"):
        return last_json([a.cqc, "bench", path, *common, "--json"])
    me = [sys.executable, os.path.abspath(__file__), "--worker", contender, path, "--answer", answer, "--feed", a.feed]
    return last_json(me + common)


def our_answer(contender, path, model, batch, answer, a):
    """One evaluation of cqc on the inputs that the others get."""
    import numpy as np
    (feed,) = feeds(model, batch, 1, 1, a.timestep)
    with tempfile.TemporaryDirectory() as at:
        inputs = []
        known = json.loads(subprocess.run([a.cqc, "inspect", path, "--json"], check=True, capture_output=True).stdout)["inputs"]
        for name in (i["name"] for i in known if i["name"] in feed):
            np.save(f"{at}/{name}.npy", feed[name])
            inputs += ["--input", f"{name}={at}/{name}.npy"]
        step = ["--step", str(STEP)] if path.endswith(".cq") else []
        subprocess.run([a.cqc, "run", path, *inputs, *step, "-o", f"{at}/out.npz", "--quiet"], check=True)
        out = np.load(f"{at}/out.npz")
        np.save(answer, out[out.files[0]])


def sqnr(found, expected):
    import numpy as np
    found, expected = np.load(found).astype(np.float64), np.load(expected).astype(np.float64)
    return 10 * np.log10((expected**2).sum() / max(((found - expected) ** 2).sum(), 1e-300))


def compare(model, batch, a):
    import numpy as np
    paths = {c: prepared(c, model, a) for c in a.contenders}
    loops = [paths[c] for c in ("cqc-bf16", "cqc-int8") if c in paths]
    if loops:
        loop = json.loads(subprocess.run([a.cqc, "inspect", loops[0], "--json"], check=True, capture_output=True).stdout)
        a.timestep = loop["sampler"]["timesteps"][STEP]
    with tempfile.TemporaryDirectory() as at:
        # the peers' processes are not to load the model twice
        a.feed = f"{at}/feed.npz"
        np.savez(a.feed, **next(feeds(model, batch, 1, 1, a.timestep)))
        answers = {c: f"{at}/{c}.npy" for c in ["ort", *paths]}
        measure("ort", model, batch, answers["ort"], a)
        for c in (c for c in paths if c.startswith("cqc")):
            our_answer(c, paths[c], model, batch, answers[c], a)
        rounds = [{c: measure(c, path, batch, answers[c], a) for c, path in paths.items()} for _ in range(a.rounds)]
        first = a.contenders[0]
        for c in a.contenders:
            times = [statistics.median(r[c]["ms"]) for r in rounds]
            ratio = statistics.median(statistics.median(r[first]["ms"]) / statistics.median(r[c]["ms"]) for r in rounds)
            rss = statistics.median(r[c]["peak_rss_mb"] for r in rounds)
            quality = "" if c == "ort" else f"{sqnr(answers[c], answers['ort']):.1f}"
            print(f"| {os.path.basename(model)} | {batch} | {c} | {statistics.median(times):.1f} ({min(times):.1f}..{max(times):.1f}) | {ratio:.2f} "
                  f"| {quality} | {rss:.0f} |", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("models", nargs="*", default=[os.path.join(ROOT, "tests/models/ddpm-shapes32.onnx")])
    ap.add_argument("--contenders", nargs="+", default=["ort", "cqc"])
    ap.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--cqc", default=os.path.join(ROOT, "target/release/cqc"))
    ap.add_argument("--work", default=os.path.join(ROOT, "target/peers"), help="where quantized models are kept")
    ap.add_argument("--compile-options", default="", help="more options of `cqc compile`, in one argument")
    for hidden in ("--answer", "--feed"):
        ap.add_argument(hidden, help=argparse.SUPPRESS)
    ap.add_argument("--worker", metavar="CONTENDER", help=argparse.SUPPRESS)
    a = ap.parse_args()
    a.timestep = 500
    if a.worker:
        return worker(a.worker, a.models[0], a)
    print("| model | batch | | ms | times faster | SQNR dB | peak MB |\n|---|---|---|---|---|---|---|")
    for model in a.models:
        for batch in a.batch:
            only = argparse.Namespace(**{**vars(a), "batch": [batch]})
            compare(model, batch, only)


if __name__ == "__main__":
    main()
