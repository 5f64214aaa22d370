/* A clock that is wrong by as many milliseconds as <stack>/clocks/<program> says; preloaded, it is a server's own.
   DRIFTLOOP_STACK, which every child of a stack has in its environment, is the stack's directory. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long long offset_ms, read_at_ms = -1000;

static int (*real(void))(clockid_t, struct timespec *) {
    static int (*found)(clockid_t, struct timespec *);
    if (!found) found = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    return found;
}

/* Asked again ten times a second. */
static long long offset(void) {
    struct timespec now;
    real()(CLOCK_MONOTONIC, &now);
    long long now_ms = now.tv_sec * 1000LL + now.tv_nsec / 1000000;
    if (now_ms - read_at_ms >= 100) {
        char path[4096];
        const char *stack = getenv("DRIFTLOOP_STACK");
        read_at_ms = now_ms;
        snprintf(path, sizeof path, "%s/clocks/%s", stack ? stack : "", program_invocation_short_name);
        FILE *file = fopen(path, "r");
        if (file) {
            long long said;
            if (fscanf(file, "%lld", &said) == 1) offset_ms = said;
            fclose(file);
        }
    }
    return offset_ms;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int code = real()(clock, now);
    if (code == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        long long ns = now->tv_nsec + (offset() % 1000) * 1000000LL;
        now->tv_sec += offset_ms / 1000 + (ns < 0 ? -1 : ns / 1000000000);
        now->tv_nsec = ns < 0 ? ns + 1000000000 : ns % 1000000000;
    }
    return code;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    int code = clock_gettime(CLOCK_REALTIME, &precise);
    (void)zone;
    if (now) {
        now->tv_sec = precise.tv_sec;
        now->tv_usec = precise.tv_nsec / 1000;
    }
    return code;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
