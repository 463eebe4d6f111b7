/* Faults of a disk, between a program and its libc: load it with LD_PRELOAD, and name a file of rules in FAULT_RULES.

   A rule is a line "OPERATION PATH ACTION VALUE SKIP": the operation (write, fsync, rename, mkdir, remove, read) on a
   path that contains PATH fails with errno VALUE (errno), takes VALUE milliseconds longer (sleep), waits while the
   file FAULT_RULES.hold exists (hold), or is the last thing that the process does (kill), after it went well SKIP times
   in this process. The file may change at any time.

   FAULT_RECORD names a file that takes a line for each operation that went well, with how much was written or the new
   name: what a disk saw, in its order. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int passed[64];

static void hold(const char *rules) {
  char path[4096];
  snprintf(path, sizeof path, "%s.hold", rules);
  while (access(path, F_OK) == 0) usleep(2000);
}

static int fault(const char *operation, const char *path) {
  const char *rules = getenv("FAULT_RULES");
  static __thread int inside;
  if (rules == NULL || inside) return 0;
  inside = 1;
  int result = 0, number = 0, before = errno;
  FILE *file = fopen(rules, "r");
  char op[16], part[256], action[16];
  int value, skip;
  while (file && result == 0 && number < 64 && fscanf(file, "%15s %255s %15s %d %d", op, part, action, &value, &skip) == 5) {
    int place = number++;
    if (strcmp(op, operation) != 0 || strstr(path, part) == NULL) continue;
    if (__sync_fetch_and_add(&passed[place], 1) < skip) continue;
    if (strcmp(action, "kill") == 0) kill(getpid(), SIGKILL);
    if (strcmp(action, "sleep") == 0) usleep(value * 1000);
    if (strcmp(action, "hold") == 0) hold(rules);
    if (strcmp(action, "errno") == 0) result = value;
  }
  if (file) fclose(file);
  errno = result ? result : before;
  inside = 0;
  return result;
}

static const char *path_of(int descriptor, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, 4095);
  path[length < 0 ? 0 : length] = 0;
  return path;
}

static void record(const char *operation, const char *path, const char *more) {
  const char *name = getenv("FAULT_RECORD");
  static __thread int inside;
  if (name == NULL || inside) return;
  inside = 1;
  FILE *file = fopen(name, "a");
  if (file) {
    fprintf(file, "%s %s %s\n", operation, path, more);
    fclose(file);
  }
  inside = 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int descriptor, const void *bytes, size_t size) {
  char path[4096];
  if (fault("write", path_of(descriptor, path))) return -1;
  ssize_t written = REAL(write)(descriptor, bytes, size);
  char more[32];
  snprintf(more, sizeof more, "%zd", written);
  if (written >= 0) record("write", path, more);
  return written;
}

int fsync(int descriptor) {
  char path[4096];
  int result = fault("fsync", path_of(descriptor, path)) ? -1 : REAL(fsync)(descriptor);
  if (result == 0) record("fsync", path, "");
  return result;
}

int rename(const char *old, const char *new) {
  int result = fault("rename", old) ? -1 : REAL(rename)(old, new);
  if (result == 0) record("rename", old, new);
  return result;
}

int mkdir(const char *path, mode_t mode) {
  int result = fault("mkdir", path) ? -1 : REAL(mkdir)(path, mode);
  if (result == 0) record("mkdir", path, "");
  return result;
}

int unlinkat(int folder, const char *name, int flags) {
  char path[4096 + 512];
  path_of(folder, path);
  strcat(path, "/");
  strncat(path, name, 500);
  int result = fault("remove", path) ? -1 : REAL(unlinkat)(folder, name, flags);
  if (result == 0) record("remove", path, "");
  return result;
}

int rmdir(const char *path) {
  int result = fault("remove", path) ? -1 : REAL(rmdir)(path);
  if (result == 0) record("remove", path, "");
  return result;
}

ssize_t preadv64v2(int descriptor, const struct iovec *parts, int count, off64_t offset, int flags) {
  char path[4096];
  return fault("read", path_of(descriptor, path)) ? -1 : REAL(preadv64v2)(descriptor, parts, count, offset, flags);
}

ssize_t preadv64(int descriptor, const struct iovec *parts, int count, off64_t offset) {
  char path[4096];
  return fault("read", path_of(descriptor, path)) ? -1 : REAL(preadv64)(descriptor, parts, count, offset);
}
