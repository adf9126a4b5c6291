/* What the interface refuses, and that it says so: errors ARTIFACT CONDITION. Run by
 * scripts/check-capi, also under valgrind. */
#include "cqc.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

static void expect(int line, CqcStatus found, CqcStatus wanted, const char *words) {
    const char *said = found == CQC_STATUS_OK ? "" : cqc_last_error();
    if (found == wanted && strstr(said, words)) return;
    fprintf(stderr, "errors.c:%d: status %d, expected %d; \"%s\" lacks \"%s\"\n", line, (int)found,
            (int)wanted, said, words);
    failures++;
}
#define EXPECT(call, wanted, words) expect(__LINE__, call, wanted, words)

static int cancel(void *user, size_t e, size_t n, size_t first, size_t end) {
    (void)n, (void)first, (void)end;
    ++*(size_t *)user;
    return e >= 1;
}

/* the first structure of a program that was built with an older header: it ends after `seed` */
typedef struct OldRequest {
    size_t size, samples;
    uint64_t seed;
} OldRequest;
/* and of one that was built with a newer header */
typedef struct NewRequest {
    CqcRequest known;
    double more;
} NewRequest;

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    CqcArtifact *artifact = NULL;
    EXPECT(cqc_open(NULL, &artifact), CQC_STATUS_ARGUMENT, "null");
    EXPECT(cqc_open("no/such.cq", &artifact), CQC_STATUS_ARTIFACT, "no/such.cq");
    EXPECT(cqc_open(argv[1], NULL), CQC_STATUS_ARGUMENT, "null");
    EXPECT(cqc_open_memory("nonsense", 8, &artifact), CQC_STATUS_ARTIFACT, "not a .cq");
    EXPECT(cqc_open(argv[1], &artifact), CQC_STATUS_OK, "");

    /* from memory, with one byte changed */
    FILE *file = fopen(argv[1], "rb");
    if (!file || fseek(file, 0, SEEK_END)) return 2;
    size_t len = (size_t)ftell(file);
    char *bytes = malloc(len);
    rewind(file);
    if (!bytes || fread(bytes, 1, len, file) != len) return 2;
    fclose(file);
    CqcArtifact *copy = NULL;
    EXPECT(cqc_open_memory(bytes, len, &copy), CQC_STATUS_OK, "");
    cqc_artifact_free(copy);
    bytes[len / 2] ^= 1;
    EXPECT(cqc_open_memory(bytes, len, &copy), CQC_STATUS_ARTIFACT, "damaged");
    free(bytes);

    size_t needed = 0;
    EXPECT(cqc_info(artifact, NULL, 0, &needed), CQC_STATUS_ARGUMENT, "bytes");
    char *json = malloc(needed);
    EXPECT(cqc_info(artifact, json, needed, NULL), CQC_STATUS_OK, "");
    if (!json || json[0] != '{' || strlen(json) + 1 != needed) failures++;
    free(json);

    CqcLoopOptions options = {.size = 3, .threads = 1, .device = 1};
    CqcLoop *loop = NULL;
    EXPECT(cqc_loop_open(artifact, &options, &loop), CQC_STATUS_ARGUMENT, "size");
    EXPECT(cqc_loop_open(artifact, NULL, &loop), CQC_STATUS_ARGUMENT, "null");
    options.size = sizeof options;
    options.device = 7;
    EXPECT(cqc_loop_open(artifact, &options, &loop), CQC_STATUS_ARGUMENT, "device 7");
    options.device = 1;
    options.batch = SIZE_MAX;
    EXPECT(cqc_loop_open(artifact, &options, &loop), CQC_STATUS_REQUEST, "");
    options.batch = 0;
    EXPECT(cqc_loop_open(artifact, &options, &loop), CQC_STATUS_OK, "");
    /* a loop outlives the handle of its artifact */
    cqc_artifact_free(artifact);
    size_t batch = 0, elements = 0, evaluations = 0;
    EXPECT(cqc_loop_sizes(loop, &batch, &elements, &evaluations), CQC_STATUS_OK, "");
    if (batch != 1 || elements == 0 || evaluations < 3) failures++;

    float *out = calloc(elements, sizeof(float));
    int64_t label = 1;
    size_t one = 1;
    CqcArray condition = {.name = argv[2], .dtype = CQC_TYPE_I64, .shape = &one, .rank = 1};
    condition.data = &label;
    CqcRequest request = {.size = sizeof request, .samples = 1};
    EXPECT(cqc_sample(loop, &request, out, elements, NULL, NULL), CQC_STATUS_REQUEST, argv[2]);
    request.conditions = &condition;
    request.condition_count = 1;
    EXPECT(cqc_sample(loop, &request, out, elements - 1, NULL, NULL), CQC_STATUS_ARGUMENT, "floats");
    EXPECT(cqc_sample(loop, &request, NULL, elements, NULL, NULL), CQC_STATUS_ARGUMENT, "floats");
    condition.dtype = 99;
    EXPECT(cqc_sample(loop, &request, out, elements, NULL, NULL), CQC_STATUS_ARGUMENT, "type 99");
    condition.dtype = CQC_TYPE_I64;
    condition.name = "nothing";
    EXPECT(cqc_sample(loop, &request, out, elements, NULL, NULL), CQC_STATUS_REQUEST, "nothing");
    condition.name = argv[2];
    size_t huge[2] = {SIZE_MAX, SIZE_MAX};
    condition.shape = huge;
    condition.rank = 2;
    EXPECT(cqc_sample(loop, &request, out, elements, NULL, NULL), CQC_STATUS_ARGUMENT, "too large");
    condition.shape = &one;
    condition.rank = 1;
    request.guidance = NAN;
    EXPECT(cqc_sample(loop, &request, out, elements, NULL, NULL), CQC_STATUS_REQUEST, "");
    request.guidance = 0;
    request.guidance_from = 0.8f;
    request.guidance_to = 0.2f;
    EXPECT(cqc_sample(loop, &request, out, elements, NULL, NULL), CQC_STATUS_ARGUMENT, "interval");
    request.guidance_from = request.guidance_to = 0;
    request.end = SIZE_MAX;
    EXPECT(cqc_sample(loop, &request, out, elements, NULL, NULL), CQC_STATUS_REQUEST, "");
    request.end = 0;

    size_t calls = 0;
    CqcStatus status = cqc_sample(loop, &request, out, elements, cancel, &calls);
    EXPECT(status, CQC_STATUS_CANCELLED, "");
    if (calls != 2) failures++;

    /* step by step is what the whole loop is */
    EXPECT(cqc_sample(loop, &request, out, elements, NULL, NULL), CQC_STATUS_OK, "");
    float *stepped = calloc(elements, sizeof(float));
    CqcSamples *samples = NULL;
    EXPECT(cqc_begin(loop, &request, 0, 0, &samples), CQC_STATUS_OK, "");
    for (size_t left = 1; left > 0;) {
        status = cqc_step(loop, samples, &left);
        EXPECT(status, CQC_STATUS_OK, "");
        if (status != CQC_STATUS_OK) break;
    }
    EXPECT(cqc_step(loop, samples, NULL), CQC_STATUS_REQUEST, "");
    EXPECT(cqc_get(samples, stepped, 1), CQC_STATUS_ARGUMENT, "floats");
    EXPECT(cqc_get(samples, stepped, elements), CQC_STATUS_OK, "");
    if (memcmp(out, stepped, elements * sizeof(float))) {
        fprintf(stderr, "errors.c: single steps make other samples\n");
        failures++;
    }
    cqc_samples_free(samples);

    /* structures of other versions of the header */
    OldRequest old = {.size = sizeof old, .samples = 1};
    status = cqc_sample(loop, (CqcRequest *)&old, out, elements, NULL, NULL);
    EXPECT(status, CQC_STATUS_REQUEST, argv[2]);
    NewRequest newer = {.known = request};
    newer.known.size = sizeof newer;
    EXPECT(cqc_sample(loop, &newer.known, stepped, elements, NULL, NULL), CQC_STATUS_OK, "");
    newer.more = 1;
    status = cqc_sample(loop, &newer.known, stepped, elements, NULL, NULL);
    EXPECT(status, CQC_STATUS_ARGUMENT, "does not know");

    EXPECT(cqc_sample(NULL, &request, out, elements, NULL, NULL), CQC_STATUS_ARGUMENT, "null");
    cqc_loop_free(loop);
    cqc_loop_free(NULL);
    free(out);
    free(stepped);
    return failures != 0;
}
