/* The monotonic clocks of a virtual machine that was paused, loaded with LD_PRELOAD: so many nanoseconds are missing as
 * the file $PAUSED_CLOCK says, a 64-bit integer that is read through a mapping, so that it can change while the process
 * is stopped. The wall clock is left alone. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *missing;

__attribute__((constructor)) static void map_file(void)
{
    const char *path = getenv("PAUSED_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *at = mmap(NULL, sizeof *missing, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED)
        missing = at;
}

int clock_gettime(clockid_t id, struct timespec *at)
{
    int failed = syscall(SYS_clock_gettime, id, at);
    int monotonic = id == CLOCK_MONOTONIC || id == CLOCK_MONOTONIC_RAW || id == CLOCK_BOOTTIME;
    if (!failed && missing && monotonic) {
        int64_t ns = (int64_t)at->tv_sec * 1000000000 + at->tv_nsec - *missing;
        at->tv_sec = ns / 1000000000;
        at->tv_nsec = ns % 1000000000;
    }
    return failed;
}
