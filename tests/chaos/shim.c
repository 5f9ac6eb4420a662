/* Preloaded into a process: steps of its clock of the day, and a disk that is slow to sync. Both are read anew at each call from a
   shared file of two 64-bit integers (nanoseconds that the clock is off by, microseconds that each sync takes longer), so that they
   change while the process runs. The monotonic clocks are left alone: they do not step on a real machine either. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *shared;
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);

__attribute__((constructor)) static void begin(void) {
  real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
  real_fsync = dlsym(RTLD_NEXT, "fsync");
  real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
  const char *path = getenv("CHAOS_SHIM");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *found = mmap(NULL, 16, PROT_READ, MAP_SHARED, file, 0);
  if (found != MAP_FAILED) shared = found;
  close(file);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
  int failed = real_clock_gettime(clock, at);
  if (failed || !shared || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return failed;
  int64_t all = (int64_t)at->tv_sec * 1000000000 + at->tv_nsec + shared[0];
  at->tv_sec = all / 1000000000;
  at->tv_nsec = all % 1000000000;
  return 0;
}

time_t time(time_t *into) {
  struct timespec at;
  clock_gettime(CLOCK_REALTIME, &at);
  if (into) *into = at.tv_sec;
  return at.tv_sec;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
  struct timespec now;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &now);
  at->tv_sec = now.tv_sec;
  at->tv_usec = now.tv_nsec / 1000;
  return 0;
}

static void wait_for_disk(void) {
  if (shared && shared[1] > 0) {
    struct timespec lasts = {shared[1] / 1000000, shared[1] % 1000000 * 1000};
    nanosleep(&lasts, NULL);
  }
}

int fsync(int file) { wait_for_disk(); return real_fsync(file); }
int fdatasync(int file) { wait_for_disk(); return real_fdatasync(file); }
