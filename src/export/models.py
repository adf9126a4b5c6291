"""The models of schedule.json in ONNX Runtime. They read values of the loop, which schedule.json names, and give others."""
import json, pathlib, sys
import numpy as np, onnxruntime

HERE = pathlib.Path(__file__).resolve().parent


class Models:
    loop = json.loads((HERE / "schedule.json").read_text())

    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")  # else sums of u8 times s8 overflow on x86 without VNNI
        if self.loop["qdq"] != "none" and self.loop["layout"] == "if":  # where that option does not reach
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        session = lambda model: onnxruntime.InferenceSession(str(HERE / model["file"]), options)
        self.models = {model["name"]: (model, session(model)) for model in self.loop["models"]}

    def begin(self, conditions, guided, batch):
        """The values that the loop begins with, of each half of guidance, the unconditional one first. Conditions are NAME=FILE.npy or NAME=1,2,3."""
        self.batch = batch
        pairs = (condition.partition("=") for condition in conditions)
        halves = [{"condition." + name: np.load(value) if value.endswith(".npy") else np.array(value.split(","), int) for name, _, value in pairs}]
        if guided:
            null = self.loop["null_conditions"] or sys.exit("guidance needs null conditions, which this loop lacks")
            halves.insert(0, halves[0] | {"condition." + name: row for name, row in np.load(HERE / null["file"]).items()})
        for values in halves:
            self.run("prelude", values)
        return halves

    def run(self, name, values):
        """Runs a model, if there is one of that name, and adds what it gives to the values."""
        if name in self.models:
            model, session = self.models[name]
            given = session.run(None, {port["name"]: self.feed(port, values) for port in model["inputs"]})
            values.update(zip((port["value"] for port in model["outputs"]), given))

    def feed(self, port, values):
        value, shape = values.get(port["value"]), [n if isinstance(n, int) else self.batch for n in port["shape"]]
        if value is None and port["value"].startswith("condition."):
            sys.exit(f"{port['name']} is missing: {port['name']}=FILE.npy")
        value = np.zeros(shape) if value is None else np.asarray(value)  # zeros: a cache that nothing has filled yet
        one_row = port["value"].startswith(("condition.", "timestep"))  # for all samples
        return np.array(np.broadcast_to(value, shape) if one_row else value, port["dtype"])
