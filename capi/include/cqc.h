/* The C interface of the cachequant runtime: opens compiled artifacts and samples from them.
 *
 * Made from capi/src by cbindgen; do not edit. Functions return a CqcStatus, and cqc_last_error
 * describes the last error of the calling thread. Fill structures with zeros and set their member
 * `size` to their sizeof; a field that is zero has its default. */

#ifndef CQC_H
#define CQC_H

#include <stddef.h>
#include <stdint.h>

// The result of a call. After a result other than `CQC_STATUS_OK`, `cqc_last_error` describes the
// error.
typedef enum CqcStatus {
  // The call succeeded.
  CQC_STATUS_OK = 0,
  // An argument is null, too small, or not UTF-8, or a structure has an invalid size.
  CQC_STATUS_ARGUMENT = 1,
  // The artifact cannot be read, or it is damaged.
  CQC_STATUS_ARTIFACT = 2,
  // The artifact cannot do what the request asks for.
  CQC_STATUS_REQUEST = 3,
  // The progress callback cancelled the call.
  CQC_STATUS_CANCELLED = 4,
  // There is a bug in the library. The handles that were passed must be freed and not used
  // again.
  CQC_STATUS_INTERNAL = 5,
} CqcStatus;

// Element types of arrays.
typedef enum CqcType {
  // `float`
  CQC_TYPE_F32 = 0,
  // `double`
  CQC_TYPE_F64 = 1,
  // IEEE half precision
  CQC_TYPE_F16 = 2,
  // `int32_t`
  CQC_TYPE_I32 = 3,
  // `int64_t`
  CQC_TYPE_I64 = 4,
  // One byte per element, 0 or 1
  CQC_TYPE_BOOL = 5,
} CqcType;

// An opened artifact. Several threads may use it at once.
typedef struct CqcArtifact CqcArtifact;

// A sampling loop with its memory. One thread at a time may use it.
typedef struct CqcLoop CqcLoop;

// The state of the samples of a batch between two evaluations. It belongs to the loop that began
// it, and one thread at a time may use it.
typedef struct CqcSamples CqcSamples;

// Options of `cqc_loop_open`. A field that is zero has its default.
typedef struct CqcLoopOptions {
  // `sizeof(CqcLoopOptions)`.
  size_t size;
  // Number of samples that are computed at once; 0: 1. A model with a fixed batch ignores it.
  size_t batch;
  // Number of threads; 0: one per core. The results do not depend on it.
  size_t threads;
  // Number of sampling steps; 0: the number that was compiled.
  size_t steps;
  // Scale of guidance of the requests, which decides whether both halves are computed; 0: the
  // scale of the artifact, 1: no guidance.
  float guidance;
  // 0: a GPU if there is a suitable one, 1: the CPU, 2: a GPU, or an error if there is none.
  uint32_t device;
  // The time steps of a solver of the caller, one per evaluation, for `cqc_begin` and
  // `cqc_predict`; null: the time steps of the artifact's sampler.
  const double *timesteps;
  // Number of `timesteps`.
  size_t timestep_count;
} CqcLoopOptions;

// An array of the caller, row-major and without gaps. The library reads it during the call only.
typedef struct CqcArray {
  // Name of the input; null where the field that holds the array names it.
  const char *name;
  // One of `CqcType`.
  uint32_t dtype;
  // The `rank` sizes. The first one is the number of samples, or 1 for a value that all samples
  // share. An input with a value per evaluation has `[evaluations, rows, ...]`.
  const size_t *shape;
  // Number of axes. An array without axes is one number, which fills the input.
  size_t rank;
  // The elements.
  const void *data;
} CqcArray;

// A request for samples. A field that is zero has its default.
typedef struct CqcRequest {
  // `sizeof(CqcRequest)`.
  size_t size;
  // Number of samples.
  size_t samples;
  // Seed of all noise.
  uint64_t seed;
  // Number of the first sample: sample i draws its noise from stream `first + i` of the seed.
  uint64_t first;
  // Scale of guidance; 0: the scale of the artifact.
  float guidance;
  // Initial noise `[samples, ...]` of unit variance; null: the noise of the seed.
  const struct CqcArray *noise;
  // The conditions, by name.
  const struct CqcArray *conditions;
  // Number of `conditions`.
  size_t condition_count;
  // The conditions of the unconditional half of guidance, by name; null: those of the artifact.
  const struct CqcArray *unconditional;
  // Number of `unconditional`.
  size_t unconditional_count;
  // Image or latent `[samples, ...]` that the loop begins with; null: noise alone.
  const struct CqcArray *init;
  // Mask of `init`: 0 keeps the image, 1 repaints it; null: all of it is repainted.
  const struct CqcArray *mask;
  // The share of the steps that run on `init`, more than 0 and at most 1; 0: 0.8, and 1 with a
  // mask.
  float strength;
  // How far the standard deviation of the guided prediction is moved to the one of the
  // conditional prediction, 0 to 1; 0: the value of the artifact, negative: not at all.
  float guidance_rescale;
  // The part of the loop in which guidance applies, in shares of the steps: from
  // `guidance_from` to `guidance_to`. Both 0: the interval of the artifact.
  float guidance_from;
  // See `guidance_from`.
  float guidance_to;
  // The first step that runs. From 1 on, `noise` holds the samples before that step.
  size_t start;
  // The number of the step before which the loop ends; 0: the end of the loop.
  size_t end;
} CqcRequest;

// A progress callback. It is called after every evaluation with the index of the evaluation, the
// number of evaluations, and the range of the samples that are being computed, `first` to
// `end - 1`. A result other than 0 cancels the call.
typedef int (*CqcProgress)(void *user,
                           size_t evaluation,
                           size_t evaluations,
                           size_t first,
                           size_t end);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Returns the description, in English, of the last call of this thread that failed. The string is
// valid until the next call of the thread that fails.
const char *cqc_last_error(void);

// Returns the version of the library, e.g. `0.2.0`.
const char *cqc_version(void);

// Opens the artifact in a file, which is mapped into memory. The file must not change while it is
// open.
//
// # Safety
// `path` is a zero-terminated string in UTF-8, and `out` is writable.
enum CqcStatus cqc_open(const char *path, struct CqcArtifact **out);

// Opens an artifact in memory. The bytes are copied.
//
// # Safety
// `data` holds `len` bytes, and `out` is writable.
enum CqcStatus cqc_open_memory(const void *data, size_t len, struct CqcArtifact **out);

// Describes the artifact as a zero-terminated JSON object: steps, sampler, time steps, inputs with
// their types, and the sizes of a sample.
//
// `needed` receives the length with the zero; it may be null. If `capacity` is smaller, nothing is
// written to `buffer` and the result is `CQC_STATUS_ARGUMENT`.
//
// # Safety
// `buffer` has room for `capacity` bytes.
enum CqcStatus cqc_info(const struct CqcArtifact *artifact,
                        char *buffer,
                        size_t capacity,
                        size_t *needed);

// Opens a loop of an artifact. The artifact may be freed before the loop.
//
// # Safety
// The pointers are valid for their types, and `out` is writable.
enum CqcStatus cqc_loop_open(const struct CqcArtifact *artifact,
                             const struct CqcLoopOptions *options,
                             struct CqcLoop **out);

// Returns the sizes of a loop: the number of samples that are computed at once, the number of
// elements of one sample, and the number of evaluations. Each of the three pointers may be null.
//
// # Safety
// `of` is a loop, and the pointers that are not null are writable.
enum CqcStatus cqc_loop_sizes(const struct CqcLoop *of,
                              size_t *batch,
                              size_t *elements,
                              size_t *evaluations);

// Runs the whole loop and writes the samples `[samples, ...]` to `out`. `len` is their number of
// floats: samples times elements. `progress` may be null; it receives `user`.
//
// # Safety
// The pointers are valid for their types, and `out` has room for `len` floats.
enum CqcStatus cqc_sample(const struct CqcLoop *of,
                          const struct CqcRequest *what,
                          float *out,
                          size_t len,
                          CqcProgress progress,
                          void *user);

// Begins one batch of a request: the samples from `first` on. `evaluation` is the first
// evaluation, usually 0; callers with a solver of their own, who use `cqc_predict`, may begin with
// another one.
//
// # Safety
// The pointers are valid for their types, and `out` is writable.
enum CqcStatus cqc_begin(const struct CqcLoop *of,
                         const struct CqcRequest *what,
                         size_t first,
                         size_t evaluation,
                         struct CqcSamples **out);

// Runs one evaluation and the update of the artifact's sampler. `left` receives the number of
// evaluations that remain; it may be null.
//
// # Safety
// The handles are valid, and `left` is null or writable.
enum CqcStatus cqc_step(const struct CqcLoop *of, const struct CqcSamples *samples, size_t *left);

// Copies the current samples of a batch to `out`. `len` is batch times elements.
//
// # Safety
// `samples` is valid, and `out` has room for `len` floats.
enum CqcStatus cqc_get(const struct CqcSamples *samples, float *out, size_t len);

// Evaluates the network at the next evaluation, for callers with a solver of their own. `input`
// holds batch times elements floats, already scaled for the network. `out` receives the prediction
// with guidance applied: as many floats, or twice as many if the network also predicts a variance.
//
// # Safety
// The handles are valid, `input` holds `len` floats, and `out` has room for `out_len` floats.
enum CqcStatus cqc_predict(const struct CqcLoop *of,
                           const struct CqcSamples *samples,
                           const float *input,
                           size_t len,
                           float *out,
                           size_t out_len);

// Sets the value of a condition per step for the following evaluations. `value` has a row per
// sample of the batch, or a row per sample of both halves of guidance with the unconditional half
// first.
//
// # Safety
// The handles are valid, and `value` is valid for its fields.
enum CqcStatus cqc_set_condition(const struct CqcLoop *of,
                                 const struct CqcSamples *samples,
                                 const struct CqcArray *value);

// Frees samples. Null is allowed.
//
// # Safety
// The handle is not used afterwards.
void cqc_samples_free(struct CqcSamples *samples);

// Frees a loop. Null is allowed.
//
// # Safety
// The handle is not used afterwards.
void cqc_loop_free(struct CqcLoop *of);

// Frees an artifact. Null is allowed.
//
// # Safety
// The handle is not used afterwards.
void cqc_artifact_free(struct CqcArtifact *artifact);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* CQC_H */
