/* stamp [FILE]: appends the clock in nanoseconds, and a newline, to FILE or to standard output: "I began now". */
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(int count, char **words) {
  struct timespec now;
  char line[40];
  clock_gettime(CLOCK_REALTIME, &now);
  int length = snprintf(line, sizeof line, "%lld%09ld\n", (long long)now.tv_sec, now.tv_nsec);
  int out = count > 1 ? open(words[1], O_WRONLY | O_CREAT | O_APPEND, 0644) : 1;
  return write(out, line, length) != length;
}
