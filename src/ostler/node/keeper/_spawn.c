/* Starts a program in a child that shares this process's memory until it executes, so that not one page is copied.
 *
 * The child has its own stack here and a copy of nothing else: until it executes it may only do what its steps say, which are
 * calls of the C library that Python has laid out (spawn.py). The caller waits meanwhile, and touches nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { ARGUMENTS = 6, STACK_BYTES = 64 * 1024 };

struct step {
    long call; /* the address of a C function that answers -1 where it fails */
    long arguments[ARGUMENTS];
};

struct order {
    const struct step *steps;
    long late;      /* before this step the child sees whether the parent still lives */
    long exec;      /* this one and all after it are tried until one succeeds */
    long count;
    long parent;    /* the parent's pid */
    long deadline_ms;
    long failed;    /* answer: the step that failed, or -1 */
    long number;    /* answer: its errno */
};

static char stack[STACK_BYTES] __attribute__((aligned(64)));
static volatile int shared; /* until the child lets go of this process's memory, by executing or by its end: then the kernel clears it */

static int carry_out(const struct step *step) {
    const long *a = step->arguments;
    int (*call)(long, long, long, long, long, long) = (int (*)(long, long, long, long, long, long))step->call;
    return call(a[0], a[1], a[2], a[3], a[4], a[5]);
}

static int child(void *given) {
    struct order *order = given;
    int refused = 0;
    for (long at = 0; at < order->count; at++) {
        if (at == order->late && getppid() != order->parent)
            _exit(127); /* it died before its death could be asked for as a signal */
        if (carry_out(&order->steps[at]) != -1)
            continue;
        order->number = errno;
        if (at < order->exec) {
            order->failed = at;
            _exit(127);
        }
        if (errno == EACCES)
            refused = EACCES; /* counts for more than a miss, as in a shell */
        else if (errno != ENOENT && errno != ENOTDIR) {
            refused = errno;
            break;
        }
    }
    order->failed = order->exec;
    order->number = refused ? refused : order->number;
    _exit(127);
}

/* Returns the child's pid once it executes or has failed (see `failed`; it must be killed and reaped), or -errno without one. */
int ostler_start(struct order *order) {
    const struct timespec patience = {.tv_sec = order->deadline_ms / 1000, .tv_nsec = order->deadline_ms % 1000 * 1000000};
    order->failed = -1;
    shared = 1;
    int pid = clone(child, stack + STACK_BYTES, CLONE_VM | CLONE_CHILD_CLEARTID | SIGCHLD, order, NULL, NULL, &shared);
    if (pid < 0)
        return -errno;
    while (shared) { /* a signal may come; to return before the child is done would pull its steps from under it */
        if (syscall(SYS_futex, &shared, FUTEX_WAIT, 1, &patience, NULL, 0) && errno == ETIMEDOUT) {
            kill(pid, SIGKILL); /* here already: it must not write below after this */
            order->failed = order->exec;
            order->number = ETIMEDOUT;
            break;
        }
    }
    return pid;
}
