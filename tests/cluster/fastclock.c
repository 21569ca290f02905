/* Lets the monotonic clocks of a process run fast, loaded with LD_PRELOAD. The file $FAST_CLOCK is read when the process
 * starts: two 64-bit integers, by how many parts in a thousand, and since which moment of CLOCK_BOOTTIME in nanoseconds;
 * without the file the clocks are right. All processes of a host agree. The wall clock is left alone. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static struct {
    int64_t parts, since;
} fast;

__attribute__((constructor)) static void read_file(void)
{
    const char *path = getenv("FAST_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    if (read(fd, &fast, sizeof fast) != sizeof fast)
        fast.parts = 0;
    close(fd);
}

int clock_gettime(clockid_t id, struct timespec *at)
{
    int failed = syscall(SYS_clock_gettime, id, at);
    int monotonic = id == CLOCK_MONOTONIC || id == CLOCK_MONOTONIC_RAW || id == CLOCK_BOOTTIME;
    if (!failed && fast.parts && monotonic) {
        int64_t ns = (int64_t)at->tv_sec * 1000000000 + at->tv_nsec;
        ns += (ns - fast.since) / 1000 * fast.parts;
        at->tv_sec = ns / 1000000000;
        at->tv_nsec = ns % 1000000000;
    }
    return failed;
}
