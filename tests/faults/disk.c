/* A disk that refuses: loaded with LD_PRELOAD, armed through ctypes (disk.py). From the n-th change
   of a file below a folder on, each fails with an error; or the process ends there (error 0). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[PATH_MAX];
static long allowed, done;
static int refusal, armed;

void disk_arm(const char *folder, long changes, int error) {
  strncpy(below, folder, sizeof below - 1);
  allowed = changes, refusal = error, done = 0, armed = 1;
}

long disk_changes(void) { return done; }

static int refused(const char *path) {
  if (!armed || strncmp(path, below, strlen(below))) return 0;
  if (done++ < allowed) return 0;
  if (!refusal) kill(getpid(), SIGKILL);
  errno = refusal;
  return 1;
}

static int refused_at(int fd) {
  char link[64], path[PATH_MAX];
  if (!armed) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return refused(path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRITES(flags) ((flags) & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR))

#define OPENER(name)                                    \
  int name(const char *path, int flags, ...) {          \
    va_list more;                                       \
    va_start(more, flags);                              \
    mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0; \
    va_end(more);                                       \
    if (WRITES(flags) && refused(path)) return -1;      \
    return NEXT(name)(path, flags, mode);               \
  }
OPENER(open)
OPENER(open64)

ssize_t write(int fd, const void *data, size_t size) {
  return refused_at(fd) ? -1 : NEXT(write)(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  return refused_at(fd) ? -1 : NEXT(writev)(fd, parts, count);
}
int fsync(int fd) { return refused_at(fd) ? -1 : NEXT(fsync)(fd); }
int rename(const char *from, const char *to) {
  return refused(to) ? -1 : NEXT(rename)(from, to);
}
int mkdir(const char *path, mode_t mode) { return refused(path) ? -1 : NEXT(mkdir)(path, mode); }
