/* Samples from an artifact, and says how far it is: sample ARTIFACT OUT COUNT SEED
 *
 * OUT gets the samples as float32 without a header. Two threads sample at once, each with a loop of
 * its own over the same weights, and must make the same bytes.
 *
 *     cc -Wall -Wextra -Werror -Iinclude examples/sample.c -L../target/release -lcqc -lpthread
 */
#include "cqc.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Job {
    const CqcArtifact *artifact;
    size_t count;
    unsigned long long seed;
    float *samples;
    size_t len;
    CqcStatus status;
    char error[256];
} Job;

static int show(void *user, size_t evaluation, size_t evaluations, size_t first, size_t end) {
    (void)user, (void)first, (void)end;
    fprintf(stderr, "\r%zu of %zu", evaluation + 1, evaluations);
    return 0;
}

static CqcStatus sample(Job *job, CqcProgress progress) {
    CqcLoopOptions options = {.size = sizeof options, .batch = job->count, .threads = 1, .device = 1};
    CqcLoop *loop = NULL;
    CqcStatus status = cqc_loop_open(job->artifact, &options, &loop);
    if (status != CQC_STATUS_OK) return status;
    size_t elements = 0;
    status = cqc_loop_sizes(loop, NULL, &elements, NULL);
    if (status == CQC_STATUS_OK) {
        job->len = job->count * elements;
        job->samples = malloc(job->len * sizeof(float));
        CqcRequest request = {.size = sizeof request, .samples = job->count, .seed = job->seed};
        status = job->samples
            ? cqc_sample(loop, &request, job->samples, job->len, progress, NULL)
            : CQC_STATUS_ARGUMENT;
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

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: sample ARTIFACT OUT COUNT SEED\n");
        return 2;
    }
    CqcArtifact *artifact = NULL;
    if (cqc_open(argv[1], &artifact) != CQC_STATUS_OK) {
        fprintf(stderr, "%s\n", cqc_last_error());
        return 1;
    }
    size_t count = strtoul(argv[3], NULL, 10);
    unsigned long long seed = strtoull(argv[4], NULL, 10);
    Job first = {.artifact = artifact, .count = count, .seed = seed}, second = first;
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
    FILE *out = failed ? NULL : fopen(argv[2], "wb");
    if (out) {
        failed = fwrite(first.samples, sizeof(float), first.len, out) != first.len;
        failed |= fclose(out) != 0;
    } else {
        failed = 1;
    }
    free(first.samples);
    free(second.samples);
    return failed;
}
