// Samples from an artifact: node sample.mjs LIBRARY ARTIFACT OUT COUNT SEED [CONDITION LABEL]
//
// LIBRARY is libcqc.so, libcqc.dylib or cqc.dll. OUT receives the samples as float32 without a
// header. Needs koffi (npm install).
import koffi from "koffi";
import { writeFileSync } from "node:fs";

const [libraryPath, artifactPath, outPath, count, seed, condition, label] = process.argv.slice(2);
if (!seed) {
  console.error("usage: node sample.mjs LIBRARY ARTIFACT OUT COUNT SEED [CONDITION LABEL]");
  process.exit(2);
}

const library = koffi.load(libraryPath);
koffi.opaque("CqcArtifact");
koffi.opaque("CqcLoop");
koffi.struct("CqcArray", {
  name: "const char *", dtype: "uint32_t", shape: "size_t *", rank: "size_t", data: "void *",
});
koffi.struct("CqcLoopOptions", {
  size: "size_t", batch: "size_t", threads: "size_t", steps: "size_t", guidance: "float",
  device: "uint32_t", timesteps: "void *", timestep_count: "size_t",
});
// the first fields of the structure: those that are missing have their defaults
koffi.struct("CqcRequest", {
  size: "size_t", samples: "size_t", seed: "uint64_t", first: "uint64_t", guidance: "float",
  noise: "void *", conditions: "CqcArray *", condition_count: "size_t",
});
const open = library.func("int cqc_open(const char *path, _Out_ CqcArtifact **out)");
const lastError = library.func("const char *cqc_last_error()");
const openLoop = library.func(
  "int cqc_loop_open(CqcArtifact *artifact, CqcLoopOptions *options, _Out_ CqcLoop **out)",
);
const sizes = library.func(
  "int cqc_loop_sizes(CqcLoop *loop, void *batch, _Out_ size_t *elements, void *evaluations)",
);
const sample = library.func(
  "int cqc_sample(CqcLoop *loop, CqcRequest *what, _Out_ float *out, size_t len, void *progress, " +
    "void *user)",
);
const freeLoop = library.func("void cqc_loop_free(CqcLoop *loop)");
const freeArtifact = library.func("void cqc_artifact_free(CqcArtifact *artifact)");

function check(status) {
  if (status !== 0) throw new Error(lastError());
}

const artifact = [null];
check(open(artifactPath, artifact));
const samples = Number(count);
const loop = [null];
const options = { size: koffi.sizeof("CqcLoopOptions"), batch: samples, threads: 1, device: 1 };
const zeros = { steps: 0, guidance: 0, timesteps: null, timestep_count: 0 };
check(openLoop(artifact[0], { ...zeros, ...options }, loop));
freeArtifact(artifact[0]);

const elements = [0];
check(sizes(loop[0], null, elements, null));
const conditions = condition
  ? [{ name: condition, dtype: 4, shape: [1], rank: 1, data: new BigInt64Array([BigInt(label)]) }]
  : [];
const request = {
  size: koffi.sizeof("CqcRequest"), samples, seed: BigInt(seed), first: 0, guidance: 0, noise: null,
  conditions, condition_count: conditions.length,
};
const out = new Float32Array(samples * Number(elements[0]));
check(sample(loop[0], request, out, out.length, null, null));
freeLoop(loop[0]);
writeFileSync(outPath, out);
