/* Lets the monotonic clocks of a process run fast, loaded with LD_PRELOAD: by so many parts in a thousand as stand as
 * a 64-bit integer at the start of the file $FAST_CLOCK when the process starts; without the file they are right. All
 * processes that read them that way agree, since they count from the boot. The wall clock is left alone. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int64_t parts;

__attribute__((constructor)) static void read_file(void)
{
    const char *path = getenv("FAST_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    if (read(fd, &parts, sizeof parts) != sizeof parts)
        parts = 0;
    close(fd);
}

int clock_gettime(clockid_t id, struct timespec *at)
{
    int failed = syscall(SYS_clock_gettime, id, at);
    int monotonic = id == CLOCK_MONOTONIC || id == CLOCK_MONOTONIC_RAW || id == CLOCK_BOOTTIME;
    if (!failed && parts && monotonic) {
        int64_t ns = (int64_t)at->tv_sec * 1000000000 + at->tv_nsec;
        ns += ns / 1000 * parts;
        at->tv_sec = ns / 1000000000;
        at->tv_nsec = ns % 1000000000;
    }
    return failed;
}
