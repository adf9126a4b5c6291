"""Writes the models of this folder: `python make.py` with numpy, onnx and onnxruntime (recorded with 1.32).

A model holds its own test: initializers `given:NAME` are inputs, `expected:NAME` what the outputs must be. Operators
that ONNX Runtime has no CPU kernel for are compared with a second model of standard operators (`like`), which it runs.
"""
import os
import sys
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as TP, helper as oh, numpy_helper as nh

HERE = os.path.dirname(os.path.abspath(__file__))
MS = "com.microsoft"
rng = np.random.RandomState(0)
only = sys.argv[1:]


def r(*shape):
    return rng.randn(*shape).astype(np.float32)


def node(op, ins, outs, domain="", **attributes):
    return oh.make_node(op, ins, outs, domain=domain, **attributes)


def info(name, a, dims=None):
    return oh.make_tensor_value_info(name, oh.np_dtype_to_tensor_dtype(a.dtype), dims or list(a.shape))


def model(nodes, given, outputs, constants, opset=17, batch=False):
    inputs = [info(k, v, (["N"] + list(v.shape[1:])) if batch and v.ndim else None) for k, v in given.items()]
    outs = [o if isinstance(o, onnx.ValueInfoProto) else oh.make_empty_tensor_value_info(o) for o in outputs]
    g = oh.make_graph(nodes, "case", inputs, outs, [nh.from_array(np.asarray(v), k) for k, v in constants.items()])
    m = oh.make_model(g, opset_imports=[oh.make_opsetid("", opset), oh.make_opsetid(MS, 1)])
    m.ir_version = 9
    return m


def run(m, given):
    o = ort.SessionOptions()
    o.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    o.log_severity_level = 4
    s = ort.InferenceSession(m.SerializeToString(), o, providers=["CPUExecutionProvider"])
    return s.run(None, given)


def case(name, nodes, given, outputs=("y",), constants=None, like=None, expected=None, opset=17, batch=False):
    """`like`: (nodes, constants or None) or a function of the inputs that gives the outputs."""
    if only and not any(name.startswith(o) for o in only):
        return
    constants = constants or {}
    names = [o.name if isinstance(o, onnx.ValueInfoProto) else o for o in outputs]
    m = model(nodes, given, outputs, constants, opset, batch)
    if expected is None:
        if like is None:
            expected = run(m, given)
        elif callable(like):
            expected = like(**given, **constants)
        else:
            expected = run(model(like[0], given, outputs, like[1] or constants, opset), given)
    if not isinstance(expected, (list, tuple)):
        expected = [expected]
    for k, v in given.items():
        m.graph.initializer.append(nh.from_array(np.asarray(v), "given:" + k))
    for k, v in zip(names, expected):
        m.graph.initializer.append(nh.from_array(np.asarray(v, order="C"), "expected:" + k))
    open(f"{HERE}/{name}.onnx", "wb").write(m.SerializeToString())


# ------------------------------------------------------------------------------------------------ normalisation
def group_norm(s, gamma, beta, groups, eps, last, silu):
    x = np.asarray(s, np.float64)
    x = np.moveaxis(x, -1, 1) if last else x
    n, c = x.shape[:2]
    g = x.reshape(n, groups, -1)
    g = (g - g.mean(-1, keepdims=True)) / np.sqrt(g.var(-1, keepdims=True) + eps)
    y = g.reshape(x.shape) * gamma.reshape(c, 1, 1) + beta.reshape(c, 1, 1)
    y = y / (1 + np.exp(-y)) if silu else y
    return np.moveaxis(y, 1, -1) if last else y


for last in (0, 1):
    shape = (2, 3, 4, 8) if last else (2, 8, 3, 4)
    wide = (1, 1, 1, 8) if last else (1, 8, 1, 1)
    p = {"gamma": 1 + .1 * r(8), "beta": .1 * r(8)}
    for act in (0, 1):
        case(f"group-norm-{last}{act}", [node("GroupNorm", ["x", "gamma", "beta"], ["y"], MS, groups=4, epsilon=1e-4, channels_last=last, activation=act)],
             {"x": r(*shape)}, constants=p, like=lambda x, gamma, beta: np.float32(group_norm(x, gamma, beta, 4, 1e-4, last, act)))
    skips = {"full": shape, "flat": (2, 8), "last": (2, 1, 1, 8)}
    for kind, s in skips.items():
        for bias in (False, True):
            q = dict(p, **({"bias": r(8)} if bias else {}))

            def like(x, skip, gamma, beta, bias=None):
                k = skip if skip.shape == x.shape else skip.reshape((2, 1, 1, 8) if last else (2, 8, 1, 1))
                t = x + k + (0 if bias is None else bias.reshape(wide))
                return [np.float32(group_norm(t, gamma, beta, 2, 1e-5, last, bias is not None)), np.float32(t)]
            case(f"skip-group-norm-{last}-{kind}-{int(bias)}", [node("SkipGroupNorm", ["x", "gamma", "beta", "skip"] + ["bias"] * bias, ["y", "s"], MS, groups=2, channels_last=last, activation=int(bias))],
                 {"x": r(*shape), "skip": r(*s)}, ["y", "s"], q, like=like, batch=True)
x16, s16 = r(2, 3, 4, 8).astype(np.float16), r(2, 3, 4, 8).astype(np.float16)
case("skip-group-norm-half", [node("SkipGroupNorm", ["x", "gamma", "beta", "skip"], ["y", "s"], MS, groups=2, activation=1)], {"x": x16, "skip": s16}, ["y", "s"], p,
     like=lambda x, skip, gamma, beta: [np.float16(group_norm(x + skip, gamma, beta, 2, 1e-5, 1, 1)), x + skip])
for extra in (0, 1):
    ins = ["x", "skip", "gamma", "beta"] + ["bias"] * extra
    case(f"skip-layer-norm-{extra}", [node("SkipLayerNormalization", ins, ["y", "", "", "s"], MS, epsilon=1e-3)], {"x": r(2, 3, 8), "skip": r(*((2, 3, 8) if extra else (3, 8)))}, ["y", "s"],
         {"gamma": r(8), "beta": r(8), **({"bias": r(8)} if extra else {})})
    ins = ["x", "skip", "gamma"] + ["bias"] * extra
    case(f"skip-rms-norm-{extra}", [node("SkipSimplifiedLayerNormalization", ins, ["y", "", "", "s"], MS, epsilon=1e-3)], {"x": r(2, 3, 8), "skip": r(2, 3, 8)}, ["y", "s"],
         {"gamma": r(8), **({"bias": r(8)} if extra else {})})
case("rms-norm", [node("SimplifiedLayerNormalization", ["x", "gamma"], ["y"], axis=-1, epsilon=1e-3)], {"x": r(2, 3, 8)}, constants={"gamma": r(8)})
ids, seg, pos, msk = (np.array(a, np.int32) for a in ([[1, 2, 3], [4, 5, 0]], [[0, 1, 1], [0, 0, 1]], [[3, 1, 2], [0, 2, 2]], [[1, 1, 0], [1, 0, 0]]))
emb = {"w": r(6, 8), "p": r(4, 8), "t": r(2, 8), "gamma": r(8), "beta": r(8)}
case("embed-layer-norm", [node("EmbedLayerNormalization", ["ids", "seg", "w", "p", "t", "gamma", "beta", "mask", "pos"], ["y", "m", "s"], MS)], {"ids": ids, "seg": seg, "mask": msk, "pos": pos}, ["y", "m", "s"], emb)
case("embed-layer-norm-plain", [node("EmbedLayerNormalization", ["ids", "", "w", "p", "", "gamma", "beta"], ["y", "m"], MS, epsilon=1e-3)], {"ids": ids}, ["y", "m"], {k: emb[k] for k in ("w", "p", "gamma", "beta")})

# ------------------------------------------------------------------------------------------------ activations
for op, k in (("Gelu", {}), ("QuickGelu", {"alpha": 1.702}), ("QuickGelu", {"alpha": .7}), ("FastGelu", {})):
    case(f"{op.lower()}-{len(k) and k['alpha']}", [node(op, ["x"], ["y"], MS, **k)], {"x": r(2, 3, 8)})
for op in ("BiasGelu", "FastGelu"):
    case(f"{op.lower()}-bias", [node(op, ["x", "b"], ["y"], MS)], {"x": r(2, 3, 8)}, constants={"b": r(8)})
case("bias-split-gelu", [node("BiasSplitGelu", ["x", "b"], ["y"], MS)], {"x": r(2, 3, 8)}, constants={"b": r(8)},
     like=([node("Add", ["x", "b"], ["s"]), node("Split", ["s"], ["u", "v"], axis=-1), node("Gelu", ["v"], ["g"], MS), node("Mul", ["u", "g"], ["y"])], None))
case("bias-add", [node("BiasAdd", ["x", "b", "skip"], ["y"], MS)], {"x": r(2, 3, 8), "skip": r(2, 3, 8)}, constants={"b": r(8)}, like=lambda x, skip, b: x + b + skip)
case("bias-softmax", [node("BiasSoftmax", ["x", "b"], ["y"], MS, axis=2, is_inner_broadcast=1)], {"x": r(2, 3, 4, 5), "b": r(2, 1, 1, 5)},
     like=([node("Add", ["x", "b"], ["s"]), node("Reshape", ["s", "flat"], ["f"]), node("Softmax", ["f"], ["g"], axis=-1), node("Reshape", ["g", "full"], ["y"])], {"flat": np.array([2, 3, 20]), "full": np.array([2, 3, 4, 5])}))


def swiglu(gate, up, alpha, beta, limit):
    g, u = (np.minimum(gate, limit), np.clip(up, -limit, limit)) if limit > 0 else (gate, up)
    return np.float32(g / (1 + np.exp(-alpha * np.float64(g))) * (u + beta))


case("swiglu", [node("SwiGLU", ["gate", "up"], ["y"], MS, activation_alpha=1.7, activation_beta=1.0, limit=.9)], {"gate": r(2, 8), "up": r(2, 8)}, like=lambda gate, up: swiglu(gate, up, 1.7, 1.0, .9))
case("swiglu-packed", [node("SwiGLU", ["gate"], ["y"], MS)], {"gate": r(2, 8)}, like=lambda gate: swiglu(gate[:, :4], gate[:, 4:], 1.0, 0.0, 0))
case("expand-dims", [node("ExpandDims", ["x", "a"], ["y"], MS)], {"x": r(2, 3)}, constants={"a": np.array(-1, np.int32)}, like=lambda x, a: x[..., None])

# ------------------------------------------------------------------------------------------------ products
conv = {"kernel_shape": [3, 3], "pads": [1, 0, 1, 2], "strides": [2, 1]}
cw = {"w": r(6, 2, 3, 3), "b": r(6)}
for name, k in {"none": {}, "relu": {"activation": "Relu"}, "tanh": {"activation": "Tanh"}, "sigmoid": {"activation": "Sigmoid"}, "leaky": {"activation": "LeakyRelu", "activation_params": [.3]},
                "clip": {"activation": "Clip", "activation_params": [-.5, .7]}, "hard": {"activation": "HardSigmoid", "activation_params": [.3, .4]}}.items():
    case(f"fused-conv-{name}", [node("FusedConv", ["x", "w", "b"], ["y"], MS, group=2, **conv, **k)], {"x": r(2, 4, 5, 6)}, constants=cw)
case("fused-conv-sum", [node("FusedConv", ["x", "w", "b", "z"], ["y"], MS, group=2, activation="Relu", **conv)], {"x": r(2, 4, 5, 6), "z": r(2, 6, 3, 6)}, constants=cw)
to_first, to_last = {"perm": [0, 3, 1, 2]}, {"perm": [0, 2, 3, 1]}
for bias in (0, 1):
    ins = ["b"] * bias
    case(f"nhwc-conv-{bias}", [node("NhwcConv", ["x", "v"] + ins, ["y"], MS, group=2, **conv)], {"x": r(2, 5, 6, 4)}, constants={"v": cw["w"].transpose(0, 2, 3, 1).copy(), **({"b": cw["b"]} if bias else {})},
         like=([node("Transpose", ["x"], ["t"], **to_first), node("Conv", ["t", "w"] + ins, ["c"], group=2, **conv), node("Transpose", ["c"], ["y"], **to_last)], cw))
case("nhwc-fused-conv", [node("NhwcFusedConv", ["x", "w", "b", "z"], ["y"], MS, group=2, activation="Relu", **conv)], {"x": r(2, 5, 6, 4), "z": r(2, 3, 6, 6)}, constants=cw,
     like=([node("Transpose", ["x"], ["t"], **to_first), node("Conv", ["t", "w", "b"], ["c"], group=2, **conv), node("Transpose", ["c"], ["l"], **to_last), node("Add", ["l", "z"], ["s"]), node("Relu", ["s"], ["y"])], cw))
for ta in (0, 1):
    for tb in (0, 1):
        a, b = r(2, 3, 4, 5), r(2, 3, 5, 6)
        case(f"fused-matmul-{ta}{tb}", [node("FusedMatMul", ["a", "b"], ["y"], MS, transA=ta, transB=tb, alpha=.5)],
             {"a": a.swapaxes(2, 3).copy() if ta else a, "b": b.swapaxes(2, 3).copy() if tb else b})
        order = lambda v, t: np.moveaxis(v.swapaxes(2, 3) if t else v, 2, 0).copy()
        case(f"fused-matmul-batch-{ta}{tb}", [node("FusedMatMul", ["a", "b"], ["y"], MS, transA=ta, transB=tb, transBatchA=1, transBatchB=1)], {"a": order(a, ta), "b": order(b, tb)})
case("transpose-matmul", [node("TransposeMatMul", ["a", "b"], ["y"], MS, transA=1)], {"a": r(5, 3), "b": r(5, 4)})
case("fused-matmul-vector", [node("FusedMatMul", ["a", "b"], ["y"], MS, transA=1, alpha=2.0)], {"a": r(5), "b": r(5, 4)})
for name, k in {"relu": {"activation": "Relu"}, "leaky": {"activation": "LeakyRelu", "activation_alpha": .2}, "elu": {"activation": "Elu", "activation_alpha": .5}, "hard": {"activation": "HardSigmoid", "activation_alpha": .3, "activation_beta": .1}}.items():
    case(f"fused-gemm-{name}", [node("FusedGemm", ["a", "b", "c"], ["y"], MS, transB=1, alpha=.7, beta=.4, **k)], {"a": r(3, 5)}, constants={"b": r(4, 5), "c": r(4)})
case("gemm-fast-gelu", [node("GemmFastGelu", ["x", "w", "b"], ["y"], MS)], {"x": r(2, 3, 5)}, constants={"w": r(5, 4), "b": r(4)}, like=([node("MatMul", ["x", "w"], ["m"]), node("FastGelu", ["m", "b"], ["y"], MS)], None))
case("vectors", [node("MatMul", ["a", "b"], ["y"])], {"a": r(5), "b": r(5)})
case("vectors-softmax", [node("Mul", ["a", "a"], ["q"]), node("Softmax", ["q"], ["p"], axis=0), node("MatMul", ["p", "b"], ["y"])], {"a": r(5), "b": r(5)})
case("vector-linear", [node("MatMul", ["a", "w"], ["m"]), node("Add", ["m", "c"], ["s"]), node("Relu", ["s"], ["t"]), node("Add", ["t", "z"], ["y"])], {"a": r(5), "z": r(4)}, constants={"w": r(5, 4), "c": r(4)})
case("scalar-norm", [node("Sub", ["a", "a"], ["z"]), node("ReduceMean", ["a"], ["m"], keepdims=1), node("Sub", ["a", "m"], ["d"]), node("Mul", ["d", "d"], ["q"]), node("ReduceMean", ["q"], ["v"], keepdims=1), node("Add", ["v", "e"], ["w"]),
                      node("Sqrt", ["w"], ["t"]), node("Div", ["d", "t"], ["u"]), node("Add", ["u", "z"], ["y"])], {"a": np.array(2.0, np.float32)}, constants={"e": np.float32(1e-5)})

# ------------------------------------------------------------------------------------------------ attention
B, S, T, H, D = 2, 4, 6, 2, 4
att = {"w": r(8, 24), "b": r(24)}
i32 = lambda *a: np.array(a, np.int32)
masks = {"none": None, "ends": i32(3, 4), "starts": i32(3, 4, 1, 0), "keys": i32([1, 1, 0, 1], [1, 0, 1, 1]), "both": rng.randint(0, 2, (B, S, S)).astype(np.int32) | np.eye(S, dtype=np.int32)}
for name, mask in masks.items():
    for causal in (0, 1):
        if causal and name == "both": continue
        given = {"x": r(B, S, 8), **({} if mask is None else {"m": mask})}
        case(f"attention-{name}-{causal}", [node("Attention", ["x", "w", "b"] + ([] if mask is None else ["m"]), ["y"], MS, num_heads=H, unidirectional=causal)], given, constants=att)
case("attention-mask-value", [node("Attention", ["x", "w", "b", "m"], ["y"], MS, num_heads=H, mask_filter_value=-2.0, scale=.3)], {"x": r(B, S, 8), "m": masks["keys"]}, constants=att)
case("attention-widths", [node("Attention", ["x", "w", "b"], ["y"], MS, num_heads=H, qkv_hidden_sizes=[8, 8, 12])], {"x": r(B, S, 6)}, constants={"w": r(6, 28), "b": r(28)})
case("attention-bias", [node("Attention", ["x", "w", "", "m", "", "a"], ["y"], MS, num_heads=H)], {"x": r(B, S, 8), "m": masks["keys"], "a": r(1, H, S, S)}, constants={"w": att["w"]})
case("attention-past", [node("Attention", ["x", "w", "b", "", "past"], ["y", "present"], MS, num_heads=H, unidirectional=1)], {"x": r(B, S, 8), "past": r(2, B, H, 3, D)}, ["y", "present"], att)
case("attention-zeros", [node("Attention", ["x", "w", "b"], ["y"], MS, num_heads=H)], {"x": r(B, S, 8)}, constants={"w": att["w"], "b": np.zeros(24, np.float32)}, batch=True)
q, k, v = r(B, S, 8), r(B, T, 8), r(B, T, 8)
mha = lambda ins, outs=("y",), **kw: [node("MultiHeadAttention", ins, list(outs), MS, num_heads=H, **kw)]
case("mha-plain", mha(["q", "k", "v"]), {"q": q, "k": k, "v": v}, batch=True)
case("mha-wide-values", mha(["q", "k", "v", "b"]), {"q": q, "k": k, "v": r(B, T, 12)}, constants={"b": r(28)})
case("mha-bias", mha(["q", "k", "v", "b"], scale=.4), {"q": q, "k": k, "v": v}, constants={"b": r(24)})
for name, m in {"ends": i32(5, 2), "keys": rng.randint(0, 2, (B, T)).astype(np.int32), "both": rng.randint(0, 2, (B, S, T)).astype(np.int32), "sums": i32(5, 2, 0, 4, 8, 0, 6, 12)}.items():
    case(f"mha-mask-{name}", mha(["q", "k", "v", "", "m"], mask_filter_value=-3.0), {"q": q, "k": k, "v": v, "m": m})
case("mha-attention-bias", mha(["q", "k", "v", "", "m", "a"]), {"q": q, "k": k, "v": v, "m": i32([1] * 5 + [0], [1] * 3 + [0] * 3), "a": r(1, H, S, T)})
case("mha-attention-bias-batch", mha(["q", "k", "v", "", "", "a"]), {"q": q, "k": k, "v": v, "a": r(B, 1, S, T)})
case("mha-causal", mha(["q", "k", "v"], unidirectional=1), {"q": q, "k": r(B, S, 8), "v": r(B, S, 8)})
case("mha-past", mha(["q", "k", "v", "", "", "", "pk", "pv"], ("y", "nk", "nv")), {"q": q, "k": r(B, S, 8), "v": r(B, S, 8), "pk": r(B, H, 3, D), "pv": r(B, H, 3, D)}, ["y", "nk", "nv"])
case("mha-past-causal", mha(["q", "k", "v", "b", "", "", "pk", "pv"], ("y", "nk", "nv"), unidirectional=1), {"q": q, "k": r(B, S, 8), "v": r(B, S, 8), "pk": r(B, H, 3, D), "pv": r(B, H, 3, D)}, ["y", "nk", "nv"], {"b": r(24)})
case("mha-split-keys", mha(["q", "k", "v"]), {"q": q, "k": r(B, H, T, D), "v": r(B, H, T, D)})
separate = lambda q, k, v, b=None: run(model(mha(["q", "k", "v"] + ([] if b is None else ["b"])), {"q": q, "k": k, "v": v}, ["y"], {} if b is None else {"b": b}), {"q": q, "k": k, "v": v})
case("mha-packed-kv", mha(["q", "kv"]), {"q": q, "kv": r(B, T, H, 2, D)}, like=lambda q, kv: separate(q, kv[:, :, :, 0].reshape(B, T, 8), kv[:, :, :, 1].reshape(B, T, 8)), batch=True)
for bias in (0, 1):
    case(f"mha-packed-qkv-{bias}", mha(["qkv"] + ["", "", "b"] * bias), {"qkv": r(B, T, H, 3, D)}, constants={"b": r(24)} if bias else {},
         like=lambda qkv, b=None: separate(*(qkv[:, :, :, i].reshape(B, T, 8) for i in range(3)), b))
cache = {"cos": r(9, 2), "sin": r(9, 2)}
for inter in (0, 1):
    rot = lambda ins=("x", "p", "cos", "sin"), **kw: [node("RotaryEmbedding", list(ins), ["y"], MS, interleaved=inter, **kw)]
    case(f"rotary-offset-{inter}", rot(), {"x": r(B, S, 8)}, constants={"p": np.array([3]), **cache})
    case(f"rotary-positions-{inter}", rot(num_heads=2), {"x": r(B, S, 8), "p": rng.randint(0, 9, (B, S))}, constants=cache)
    case(f"rotary-split-{inter}", rot(), {"x": r(B, H, S, D), "p": rng.randint(0, 9, (B, S))}, constants=cache)
    case(f"rotary-part-{inter}", rot(num_heads=2, rotary_embedding_dim=4), {"x": r(B, S, 12)}, constants={"p": np.array([1]), **cache})
gqa = lambda ins, **kw: [node("GroupQueryAttention", ins, ["y", "pk", "pv"], MS, num_heads=4, kv_num_heads=2, **kw)]
seq = {"l": i32(S - 1, S - 1), "t": np.array(S, np.int32)}
g3 = {"q": r(B, S, 64), "k": r(B, S, 32), "v": r(B, S, 32)}
gc = {"cos": r(9, 8), "sin": r(9, 8)}
gout = ["y", "pk", "pv"]
case("gqa-plain", gqa(["q", "k", "v", "", "", "l", "t"]), g3, gout, seq)
case("gqa-packed", gqa(["q", "", "", "", "", "l", "t"]), {"q": r(B, S, 128)}, gout, seq)
case("gqa-rotary", gqa(["q", "k", "v", "", "", "l", "t", "cos", "sin"], do_rotary=1), g3, gout, {**seq, **gc})
case("gqa-rotary-interleaved", gqa(["q", "k", "v", "", "", "l", "t", "cos", "sin"], do_rotary=1, rotary_interleaved=1, scale=.2), g3, gout, {**seq, **gc})
case("gqa-window", gqa(["q", "k", "v", "", "", "l", "t"], local_window_size=2), g3, gout, seq)
case("gqa-softcap", gqa(["q", "k", "v", "", "", "l", "t", "", "", "", "a"], softcap=.8), {**g3, "a": r(1, 4, S, S)}, gout, seq)
case("gqa-both-ways", gqa(["q", "k", "v", "", "", "l", "t"], causal=0), g3, gout, seq)

# ------------------------------------------------------------------------------------------------ control flow
F, I, BO = TP.FLOAT, TP.INT64, TP.BOOL
vi = oh.make_tensor_value_info


def body(nodes, ins, outs, constants=None, name="body"):
    return oh.make_graph(nodes, name, ins, outs, [nh.from_array(np.asarray(v), k) for k, v in (constants or {}).items()])


x23 = r(2, 3)
branches = lambda: dict(then_branch=body([node("Mul", ["x", "h"], ["t"])], [], [vi("t", F, [2, 3])], {"h": np.float32(.5)}), else_branch=body([node("Sqrt", ["x"], ["o"]), node("Add", ["o", "x"], ["e"])], [], [vi("e", F, [2, 3])]))
for sign in (1, -1):
    case(f"if-data-{sign}", [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Less", ["m", "z"], ["c"]), node("If", ["c"], ["y"], **branches())], {"x": np.float32(sign * np.abs(x23))}, constants={"z": np.float32(0)})
    case(f"if-shape-of-condition-{sign}", [node("ReduceMax", ["x"], ["m"], keepdims=1), node("Reshape", ["m", "one"], ["n"]), node("Less", ["n", "z"], ["c"]), node("If", ["c"], ["y"], **branches())], {"x": np.float32(sign * np.abs(x23))}, constants={"z": np.float32(0), "one": np.array([1])})
case("if-known", [node("If", ["c"], ["y"], **branches())], {"x": x23}, constants={"c": np.array(True)})
inner_if = body([node("Less", ["m", "w"], ["d"]), node("If", ["d"], ["t"], then_branch=body([node("Neg", ["x"], ["nn"])], [], [vi("nn", F, [2, 3])]), else_branch=body([node("Identity", ["x"], ["ii"])], [], [vi("ii", F, [2, 3])]))], [], [vi("t", F, [2, 3])], {"w": np.float32(-1)})
for off in (0., -5., 5.):
    case(f"if-nested-{int(off)}", [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Less", ["m", "z"], ["c"]), node("If", ["c"], ["y"], then_branch=inner_if, else_branch=branches()["then_branch"])], {"x": np.float32(x23 - np.abs(x23).max() - .1 + off)}, constants={"z": np.float32(0)})
step = lambda nodes=(), outs=(), cond="ci": body([*nodes, node("Identity", [cond], ["co"])], [vi("i", I, []), vi("ci", BO, []), vi("v", F, None)], [vi("co", BO, []), *outs])
add = [node("Cast", ["i"], ["f"], to=F), node("Add", ["v", "f"], ["a"]), node("Mul", ["a", "x"], ["b"])]
case("loop-scan", [node("Loop", ["M", "", "x"], ["y", "s"], body=step([*add, node("ReduceSum", ["b"], ["sum"], keepdims=0)], [vi("b", F, [2, 3]), vi("sum", F, [])]))], {"x": x23}, ["y", "s"], {"M": np.array(4)})
case("loop-never", [node("Loop", ["M", "", "x"], ["y", "s"], body=step([*add, node("Identity", ["a"], ["sum"])], [vi("b", F, [2, 3]), vi("sum", F, [2, 3])]))], {"x": x23}, ["y", "s"], {"M": np.array(0)})
case("loop-early", [node("Loop", ["M", "t", "x"], ["y", "s"], body=step([*add, node("Less", ["i", "two"], ["go"])], [vi("b", F, [2, 3]), vi("a", F, [2, 3])], "go"))], {"x": x23}, ["y", "s"], {"M": np.array(9), "t": np.array(True), "two": np.array(2)})
case("loop-while", [node("Loop", ["", "t", "x"], ["y"], body=step([*add, node("Less", ["i", "two"], ["go"])], [vi("b", F, [2, 3])], "go"))], {"x": x23}, ["y"], {"t": np.array(True), "two": np.array(2)})
case("loop-grows", [node("Loop", ["M", "", "x"], ["y"], body=step([node("Concat", ["v", "x"], ["b"], axis=0)], [vi("b", F, None)]))], {"x": x23}, ["y"], {"M": np.array(3)})
case("loop-length-of-shape", [node("Shape", ["x"], ["sh"]), node("Gather", ["sh", "one"], ["M"]), node("Loop", ["M", "", "x"], ["y"], body=step(add, [vi("b", F, [2, 3])]))], {"x": x23}, ["y"], {"one": np.array(1)})
for limit in (1., 20.):
    case(f"loop-data-{int(limit)}", [node("Loop", ["M", "t", "x"], ["y"], body=step([*add, node("ReduceMax", ["b"], ["bm"], keepdims=0), node("Less", ["bm", "limit"], ["go"])], [vi("b", F, [2, 3])], "go"))], {"x": np.float32(np.abs(x23) + 1)}, ["y"], {"M": np.array(5), "t": np.array(True), "limit": np.float32(limit)})
nested = body([node("Identity", ["ci"], ["co"]), node("Loop", ["M", "", "v"], ["b"], body=body([node("Identity", ["cj"], ["cp"]), node("Add", ["w", "x"], ["u"])], [vi("j", I, []), vi("cj", BO, []), vi("w", F, None)], [vi("cp", BO, []), vi("u", F, [2, 3])]))], [vi("i", I, []), vi("ci", BO, []), vi("v", F, None)], [vi("co", BO, []), vi("b", F, [2, 3])])
case("loop-nested", [node("Loop", ["M", "", "x"], ["y"], body=nested)], {"x": x23}, ["y"], {"M": np.array(3)})
case("loop-sequence", [node("SequenceEmpty", [], ["e"], dtype=F), node("Loop", ["M", "", "e"], ["q"], body=body([node("Identity", ["ci"], ["co"]), node("Cast", ["i"], ["f"], to=F), node("Mul", ["x", "f"], ["p"]), node("SequenceInsert", ["v", "p"], ["w"])], [vi("i", I, []), vi("ci", BO, []), oh.make_tensor_sequence_value_info("v", F, None)], [vi("co", BO, []), oh.make_tensor_sequence_value_info("w", F, None)])), node("ConcatFromSequence", ["q"], ["y"], axis=1)], {"x": x23}, ["y"], {"M": np.array(3)})
cell = body([node("Add", ["h", "a"], ["s"]), node("Mul", ["s", "b"], ["n"]), node("Sub", ["n", "w"], ["o"]), node("ReduceSum", ["a"], ["z"], keepdims=0)], [vi("h", F, [3]), vi("a", F, [3]), vi("b", F, [3])], [vi("n", F, [3]), vi("o", F, [3]), vi("z", F, [])])
scan = lambda **k: [node("Scan", ["h0", "p", "q"], ["hn", "os", "zs"], body=cell, num_scan_inputs=2, **k)]
case("scan-plain", scan(), {"p": r(4, 3), "q": r(4, 3), "w": r(3)}, ["hn", "os", "zs"], {"h0": r(3)})
case("scan-axes", scan(scan_input_axes=[1, 0], scan_input_directions=[0, 1], scan_output_axes=[1, 0], scan_output_directions=[1, 0]), {"p": r(3, 4), "q": r(4, 3), "w": r(3)}, ["hn", "os", "zs"], {"h0": r(3)})
case("scan-negative-axes", scan(scan_input_axes=[-1, -2], scan_input_directions=[1, 1], scan_output_axes=[-1, -1], scan_output_directions=[0, 1]), {"p": r(3, 4), "q": r(4, 3), "w": r(3)}, ["hn", "os", "zs"], {"h0": r(3)})
