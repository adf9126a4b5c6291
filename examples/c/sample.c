/* Samples from an artifact: sample ARTIFACT OUT COUNT SEED [CONDITION=LABEL ...]
 *
 * OUT receives the samples as float32 without a header. Two threads sample at once, each with a
 * loop of its own over the same weights, and must make the same bytes.
 *
 *     cc sample.c $(pkg-config --cflags --libs cqc) -lpthread -o sample
 */
#include "cqc.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LABELS 8

typedef struct Job {
    const CqcArtifact *artifact;
    size_t count;
    uint64_t seed;
    const CqcArray *conditions;
    size_t condition_count;
    float *samples;
    size_t len;
    CqcStatus status;
    char error[256];
} Job;

static int show(void *user, size_t evaluation, size_t evaluations, size_t first, size_t end) {
    (void)user, (void)first, (void)end;
    fprintf(stderr, "\r%zu of %zu", evaluation + 1, evaluations);
    return 0; /* anything else cancels */
}

static CqcStatus sample(Job *job, CqcProgress progress) {
    CqcLoopOptions options = {.size = sizeof options, .batch = job->count, .threads = 1, .device = 1};
    CqcLoop *loop = NULL;
    CqcStatus status = cqc_loop_open(job->artifact, &options, &loop);
    size_t elements = 0;
    if (status == CQC_STATUS_OK) status = cqc_loop_sizes(loop, NULL, &elements, NULL);
    if (status == CQC_STATUS_OK) {
        job->len = job->count * elements;
        job->samples = malloc(job->len * sizeof(float));
        CqcRequest request = {.size = sizeof request, .samples = job->count, .seed = job->seed};
        request.conditions = job->conditions;
        request.condition_count = job->condition_count;
        status = cqc_sample(loop, &request, job->samples, job->len, progress, NULL);
    }
    /* errors are kept per thread: read them in the thread that made the call */
    if (status != CQC_STATUS_OK) snprintf(job->error, sizeof job->error, "%s", cqc_last_error());
    cqc_loop_free(loop);
    return status;
}

static void *run(void *job) {
    ((Job *)job)->status = sample(job, NULL);
    return NULL;
}

static int write_samples(const char *path, const Job *job) {
    FILE *out = fopen(path, "wb");
    if (!out) {
        perror(path);
        return 1;
    }
    int failed = fwrite(job->samples, sizeof(float), job->len, out) != job->len;
    return fclose(out) != 0 || failed;
}

int main(int argc, char **argv) {
    if (argc < 5 || argc > 5 + MAX_LABELS) {
        fprintf(stderr, "usage: sample ARTIFACT OUT COUNT SEED [CONDITION=LABEL ...]\n");
        return 2;
    }
    CqcArtifact *artifact = NULL;
    if (cqc_open(argv[1], &artifact) != CQC_STATUS_OK) {
        fprintf(stderr, "%s\n", cqc_last_error());
        return 1;
    }
    /* one label for all samples: an array of shape [1] */
    static const size_t one = 1;
    int64_t labels[MAX_LABELS];
    CqcArray conditions[MAX_LABELS] = {0};
    size_t condition_count = 0;
    for (int i = 5; i < argc; i++) {
        char *equals = strchr(argv[i], '=');
        if (!equals) continue;
        *equals = 0;
        labels[condition_count] = strtoll(equals + 1, NULL, 10);
        CqcArray *condition = &conditions[condition_count];
        condition->name = argv[i];
        condition->dtype = CQC_TYPE_I64;
        condition->shape = &one;
        condition->rank = 1;
        condition->data = &labels[condition_count++];
    }

    Job first = {.artifact = artifact, .count = strtoul(argv[3], NULL, 10)};
    first.seed = strtoull(argv[4], NULL, 10);
    first.conditions = conditions;
    first.condition_count = condition_count;
    Job second = first;
    pthread_t thread;
    int alone = pthread_create(&thread, NULL, run, &second);
    first.status = sample(&first, show);
    if (!alone) pthread_join(thread, NULL);
    cqc_artifact_free(artifact);

    int failed = first.status != CQC_STATUS_OK || (!alone && second.status != CQC_STATUS_OK);
    if (failed) fprintf(stderr, "\n%s%s\n", first.error, second.error);
    if (!failed && !alone && memcmp(first.samples, second.samples, first.len * sizeof(float))) {
        fprintf(stderr, "\ntwo threads made different samples\n");
        failed = 1;
    }
    if (!failed) failed = write_samples(argv[2], &first);
    free(first.samples);
    free(second.samples);
    return failed;
}
