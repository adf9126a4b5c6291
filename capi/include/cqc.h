/* The C interface of the cachequant runtime: opens compiled artifacts and samples from them.
 *
 * Made from capi/src by cbindgen; do not edit. Functions return a CqcStatus, and cqc_last_error says
 * what went wrong. Structures are filled with zeros first, and their first member is their size. */

#ifndef CQC_H
#define CQC_H

#include <stddef.h>
#include <stdint.h>

// How a call ended. After anything but `CQC_OK`, `cqc_last_error` says why.
typedef enum CqcStatus {
  // It did what was asked for.
  CQC_STATUS_OK = 0,
  // An argument is null, too small, or no UTF-8; a structure has an unknown size.
  CQC_STATUS_ARGUMENT = 1,
  // The artifact cannot be read, or is damaged.
  CQC_STATUS_ARTIFACT = 2,
  // The artifact cannot do what is asked for.
  CQC_STATUS_REQUEST = 3,
  // The progress callback said stop.
  CQC_STATUS_CANCELLED = 4,
  // A mistake in the library. Handles that took part must be freed and not be used again.
  CQC_STATUS_INTERNAL = 5,
} CqcStatus;

// An opened artifact. May be used by several threads at once.
typedef struct CqcArtifact CqcArtifact;

// A loop with its memory, for one thread at a time.
typedef struct CqcLoop CqcLoop;

// Samples on their way, for one thread at a time. Belongs to the loop that began it.
typedef struct CqcSamples CqcSamples;

// How a loop is opened. Zeros stand for defaults.
typedef struct CqcLoopOptions {
  // `sizeof(CqcLoopOptions)`.
  size_t size;
  // Samples at once; 1 by default. A model of fixed batch decides itself.
  size_t batch;
  // Threads; one per core by default. Results do not depend on it.
  size_t threads;
  // Sampling steps; as compiled by default.
  size_t steps;
  // Scale of guidance that requests will have, which decides whether both halves are computed;
  // 0: that of the artifact, 1: none.
  float guidance;
  // 0: a GPU if there is one that can, 1: the CPU, 2: a GPU or an error.
  uint32_t device;
  // Time steps of a caller's own solver, one per evaluation, for `cqc_begin` and `cqc_predict`;
  // null: those of the artifact's sampler.
  const double *timesteps;
  // How many.
  size_t timestep_count;
} CqcLoopOptions;

// An array of the caller, row-major and without gaps. Read during the call only.
typedef struct CqcArray {
  // Name of the input; null where the place says what it is.
  const char *name;
  // One of `CqcType`.
  uint32_t dtype;
  // Sizes, `rank` of them. One row per sample, or one for all; `[evaluations, rows, ...]` for an
  // input that has another value at every evaluation.
  const size_t *shape;
  // Number of axes. None: one number, which fills the input.
  size_t rank;
  // The elements.
  const void *data;
} CqcArray;

// What to sample. Zeros stand for defaults.
typedef struct CqcRequest {
  // `sizeof(CqcRequest)`.
  size_t size;
  // Number of samples.
  size_t samples;
  // Seed of all noise.
  uint64_t seed;
  // Number of the first sample: sample i draws its noise from stream `first` + i.
  uint64_t first;
  // Scale of guidance; 0: that of the artifact.
  float guidance;
  // Initial noise `[samples, ...]` of unit variance instead of the seed's; may be null.
  const struct CqcArray *noise;
  // Conditions, by name.
  const struct CqcArray *conditions;
  // How many.
  size_t condition_count;
  // What guidance's unconditional half gets instead, by name; may be null.
  const struct CqcArray *unconditional;
  // How many.
  size_t unconditional_count;
  // Image or latent `[samples, ...]` to begin with; may be null.
  const struct CqcArray *init;
  // Where `init` is kept: 0 keeps it, 1 repaints; may be null.
  const struct CqcArray *mask;
  // The share of the steps that run on `init`; 0: as by default.
  float strength;
} CqcRequest;

// Called after every evaluation with its index, the number of evaluations, and the samples at work,
// `first` to `end` - 1. Anything but 0 cancels.
typedef int (*CqcProgress)(void *user,
                           size_t evaluation,
                           size_t evaluations,
                           size_t first,
                           size_t end);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// What the last call of this thread that failed says, in English. Valid until the thread's next
// call that fails.
const char *cqc_last_error(void);

// The version of the library, e.g. `0.2.0`.
const char *cqc_version(void);

// Opens the artifact at a path.
//
// # Safety
// `path` is a string that ends in a zero, `out` may be written.
enum CqcStatus cqc_open(const char *path, struct CqcArtifact **out);

// Opens an artifact in memory, which is copied.
//
// # Safety
// `data` holds `len` bytes, `out` may be written.
enum CqcStatus cqc_open_memory(const void *data, size_t len, struct CqcArtifact **out);

// What the artifact is, as a JSON object that ends in a zero: steps, sampler, time steps, inputs
// with their types, sizes of a sample. `needed` gets its length with the zero; where `capacity` is
// less, nothing is written and `CQC_STATUS_ARGUMENT` returned. `needed` may be null.
//
// # Safety
// `buffer` has room for `capacity` bytes.
enum CqcStatus cqc_info(const struct CqcArtifact *artifact,
                        char *buffer,
                        size_t capacity,
                        size_t *needed);

// Opens a loop over an artifact. The artifact may be freed before it.
//
// # Safety
// The pointers hold what their types say; `out` may be written.
enum CqcStatus cqc_loop_open(const struct CqcArtifact *artifact,
                             const struct CqcLoopOptions *options,
                             struct CqcLoop **out);

// Numbers of a loop: samples at once, elements of one sample, evaluations. Places may be null.
//
// # Safety
// `of` is a loop; places that are not null may be written.
enum CqcStatus cqc_loop_sizes(const struct CqcLoop *of,
                              size_t *batch,
                              size_t *elements,
                              size_t *evaluations);

// The whole loop: writes samples `[samples, ...]`, `len` floats in all, to `out`. `progress` may be
// null; `user` is handed on to it.
//
// # Safety
// The pointers hold what their types say; `out` has room for `len` floats.
enum CqcStatus cqc_sample(const struct CqcLoop *of,
                          const struct CqcRequest *what,
                          float *out,
                          size_t len,
                          CqcProgress progress,
                          void *user);

// Begins the samples of a request that are computed at once, from `first` on, with evaluation
// `evaluation`: 0, or any other for callers with a solver of their own, who then use `cqc_predict`.
//
// # Safety
// The pointers hold what their types say; `out` may be written.
enum CqcStatus cqc_begin(const struct CqcLoop *of,
                         const struct CqcRequest *what,
                         size_t first,
                         size_t evaluation,
                         struct CqcSamples **out);

// One evaluation, and what the artifact's sampler makes of it. `left` gets the number of evaluations
// that are left and may be null.
//
// # Safety
// The handles are of this library; `left` is null or may be written.
enum CqcStatus cqc_step(const struct CqcLoop *of,
                        const struct CqcSamples *samples,
                        size_t *left);

// The samples as they are now: batch times elements floats.
//
// # Safety
// `samples` is of this library; `out` has room for `len` floats.
enum CqcStatus cqc_get(const struct CqcSamples *samples, float *out, size_t len);

// For callers with a solver of their own: what the network answers at the next evaluation to
// `input`, batch times elements floats, scaled as the network wants to see it. `out` gets as many,
// guidance applied; twice as many where the network also gives a variance.
//
// # Safety
// The handles are of this library; `input` holds `len` floats, `out` has room for `out_len`.
enum CqcStatus cqc_predict(const struct CqcLoop *of,
                           const struct CqcSamples *samples,
                           const float *input,
                           size_t len,
                           float *out,
                           size_t out_len);

// Gives an input with another value at every evaluation that of the evaluations to come, for the
// batch, or for both halves of guidance, the unconditional one first.
//
// # Safety
// The handles are of this library; `value` holds what its fields say.
enum CqcStatus cqc_set_condition(const struct CqcLoop *of,
                                 const struct CqcSamples *samples,
                                 const struct CqcArray *value);

// Frees samples. Null is allowed.
//
// # Safety
// It is not used any more.
void cqc_samples_free(struct CqcSamples *samples);

// Frees a loop. Null is allowed.
//
// # Safety
// It is not used any more.
void cqc_loop_free(struct CqcLoop *of);

// Frees an artifact. Null is allowed.
//
// # Safety
// It is not used any more.
void cqc_artifact_free(struct CqcArtifact *artifact);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* CQC_H */
