"""Writes models that are already quantized, and what ONNX Runtime makes of them: `python make.py`

Needs onnx and onnxruntime. Weights are random.
"""

import os
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

HERE = os.path.dirname(os.path.abspath(__file__))
WORK = tempfile.mkdtemp()
rng = np.random.default_rng(0)


def noise(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def codes(*shape):
    return rng.integers(0, 256, shape).astype(np.uint8)


def value(name, shape, elem=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, elem, shape)


def model(nodes, inputs, outputs, initializers, opset=21):
    initializers = [
        t if isinstance(t, TensorProto) else numpy_helper.from_array(np.array(t), name) for name, t in initializers.items()
    ]
    graph = helper.make_graph(nodes, "quantized", inputs, outputs, initializers)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def record(name, m, inputs):
    del m.graph.value_info[:]
    path = os.path.join(HERE, name + ".onnx")
    onnx.save(m, path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    arrays = {"in_" + k: v for k, v in inputs.items()}
    arrays |= {"out_" + o.name: y for o, y in zip(session.get_outputs(), session.run(None, inputs))}
    np.savez(os.path.join(HERE, name + ".check.npz"), **arrays)


def small():
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1] * 4),
        node("Add", ["c2", "x"], ["a"]),
        node("Sigmoid", ["a"], ["s"]),
        node("Concat", ["s", "c2"], ["joined"], axis=1),
        node("GlobalAveragePool", ["joined"], ["pooled"]),
        node("Flatten", ["pooled"], ["flat"]),
        node("Gemm", ["flat", "w3", "b3"], ["g"], transB=1),
        node("MatMul", ["g", "w4"], ["y"]),
    ]
    weights = {"w1": noise(8, 4, 3, 3) / 5, "b1": noise(8), "w2": noise(4, 8, 3, 3) / 5, "b2": noise(4)}
    weights |= {"w3": noise(16, 8), "b3": noise(16), "w4": noise(16, 10)}
    outputs = [value("y", ["N", 10]), value("joined", ["N", 8, 6, 6])]
    return model(nodes, [value("x", ["N", 4, 6, 6])], outputs, weights, 17)


class Samples(CalibrationDataReader):
    def __init__(self):
        self.samples = iter([{"x": noise(2, 4, 6, 6)} for _ in range(4)])

    def get_next(self):
        return next(self.samples, None)


def whole_models():
    source, target = os.path.join(WORK, "float.onnx"), os.path.join(WORK, "quantized.onnx")
    onnx.save(small(), source)
    qdq, operators = QuantFormat.QDQ, QuantFormat.QOperator
    for name, form, channels, activations, weights in [
        ("qdq-u8s8", qdq, False, QuantType.QUInt8, QuantType.QInt8),
        ("qdq-s8-channels", qdq, True, QuantType.QInt8, QuantType.QInt8),
        ("qdq-u16u8", qdq, False, QuantType.QUInt16, QuantType.QUInt8),
        ("qdq-u8s4", qdq, False, QuantType.QUInt8, QuantType.QInt4),
        ("qoperator-u8s8", operators, False, QuantType.QUInt8, QuantType.QInt8),
        ("qoperator-s8-channels", operators, True, QuantType.QInt8, QuantType.QInt8),
    ]:
        quantize_static(
            source, target, Samples(), quant_format=form, per_channel=channels, activation_type=activations, weight_type=weights
        )
        record(name, onnx.load(target), {"x": noise(2, 4, 6, 6)})
    quantize_dynamic(source, target, weight_type=QuantType.QInt8)
    record("dynamic-s8", onnx.load(target), {"x": noise(2, 4, 6, 6)})


def blocks():
    product = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", ["N", 72])], [value("y", ["N", 24])], {"w": noise(72, 24)}, 17)
    for bits in (2, 4, 8):
        config = DefaultWeightOnlyQuantConfig(block_size=16, is_symmetric=False, bits=bits)
        quantizer = MatMulNBitsQuantizer(product, algo_config=config)
        quantizer.process()
        record(f"nbits-{bits}", quantizer.model.model, {"x": noise(3, 72)})
    k, n = 48, 20
    for kind, name in ((0, "fp4"), (1, "nf4")):
        node = helper.make_node("MatMulBnb4", ["x", "b", "m"], ["y"], domain="com.microsoft", K=k, N=n, block_size=16, quant_type=kind)
        weights = {"b": codes(k * n // 2), "m": abs(noise(k * n // 16))}
        record(f"bnb4-{name}", model([node], [value("x", ["N", k])], [value("y", ["N", n])], weights), {"x": noise(3, k)})
    node = helper.make_node(
        "GatherBlockQuantized", ["d", "i", "s", "z"], ["y"], domain="com.microsoft", gather_axis=0, quantize_axis=1, block_size=16, bits=4
    )
    weights = {"d": codes(10, 32), "s": abs(noise(10, 4)), "z": codes(10, 2)}
    rows = model([node], [value("i", ["N"], TensorProto.INT64)], [value("y", ["N", 64])], weights)
    record("gather-4", rows, {"i": np.array([1, 9, 0])})


def through_dequantize_linear():
    for elem in (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2, TensorProto.INT4, TensorProto.UINT4):
        name = TensorProto.DataType.Name(elem).lower()
        raw = codes(32 * 16 // (2 if "int4" in name else 1))
        raw = raw & 0x77 if "float" in name else raw  # no infinities
        w = helper.make_tensor("w", elem, [32, 16], raw.tobytes(), raw=True)
        for how, scale, attributes in [
            ("tensor", np.float32(0.01), {}),
            ("channels", abs(noise(16)) / 100, {"axis": 1}),
            ("blocks", abs(noise(2, 16)) / 100, {"axis": 0, "block_size": 16}),
        ]:
            nodes = [
                helper.make_node("DequantizeLinear", ["w", "s"], ["wf"], **attributes),
                helper.make_node("MatMul", ["x", "wf"], ["y"]),
            ]
            m = model(nodes, [value("x", ["N", 32])], [value("y", ["N", 16])], {"w": w, "s": scale})
            record(f"dequantize-{name}-{how}", m, {"x": noise(3, 32)})
    for elem, name in ((TensorProto.FLOAT8E4M3FN, "e4m3"), (TensorProto.FLOAT8E5M2, "e5m2")):
        zero = helper.make_tensor("z", elem, [], b"\0", raw=True)
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
        ]
        m = model(nodes, [value("x", ["N", 40])], [value("y", ["N", 40])], {"s": np.float32(0.013), "z": zero})
        spread = (noise(9, 40) * np.float32(2) ** rng.integers(-12, 10, (9, 40))).astype(np.float32)
        record(f"rounded-{name}", m, {"x": spread})


def operators():
    base = {"xs": np.float32(0.05), "xz": np.uint8(120), "ys": np.float32(0.07), "yz": np.uint8(100)}
    other = {"b": codes(4, 1, 1), "bs": np.float32(0.03), "bz": np.uint8(7)}
    unit = base | {"ys": np.float32(1 / 256), "yz": np.uint8(0)}
    one, two = ["x", "xs", "xz", "ys", "yz"], ["x", "xs", "xz", "b", "bs", "bz", "ys", "yz"]
    for op, operands, shape, weights, attributes in [
        ("QLinearAdd", two, [2, 4, 6, 6], base | other, {}),
        ("QLinearMul", two, [2, 4, 6, 6], base | other, {}),
        ("QLinearSigmoid", one, [2, 4, 6, 6], unit, {}),
        ("QLinearLeakyRelu", one, [2, 4, 6, 6], base, {"alpha": 0.2}),
        ("QLinearSoftmax", one, [2, 4, 6, 6], unit, {"opset": 13, "axis": -1}),
        ("QLinearAveragePool", one, [2, 4, 5, 5], base, {"kernel_shape": [2, 2]}),
        ("QLinearGlobalAveragePool", one, [2, 4, 1, 1], base, {}),
    ]:
        node = helper.make_node(op, operands, ["y"], domain="com.microsoft", **attributes)
        u8 = TensorProto.UINT8
        m = model([node], [value("x", [2, 4, 6, 6], u8)], [value("y", shape, u8)], weights, 17)
        record(op.lower(), m, {"x": codes(2, 4, 6, 6)})


whole_models()
blocks()
through_dequantize_linear()
operators()
