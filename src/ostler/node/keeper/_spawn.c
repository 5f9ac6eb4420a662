/* Starts programs in children that share this process's memory until they execute, so that not one page is copied.
 *
 * A child has its own stack here and a copy of nothing else, and the caller goes on meanwhile: until it executes it does nothing but
 * system calls, which Python has laid out (spawn.py), made without the C library, whose `errno` would be the caller's too.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { ARGUMENTS = 6, BIRTHS = 64, STACK_BYTES = 16 * 1024, MISSED = 127 };

struct step {
    long number; /* of the system call */
    long arguments[ARGUMENTS];
};

struct order {
    const struct step *steps;
    long late;   /* before this step the child sees whether the parent still lives */
    long exec;   /* this one and all after it are tried until one succeeds */
    long count;
    long parent; /* the parent's pid */
    long place;  /* which stack: nobody else has it until `shared` is 0 */
    long failed; /* answer: the step that failed, or -1 */
    long error;  /* answer: its errno */
    int shared;  /* until the child lets go of this process's memory, by executing or by its end: then the kernel clears it */
};

static char stacks[BIRTHS][STACK_BYTES] __attribute__((aligned(64)));

#if defined(__x86_64__)
static long raw(long number, const long *a) {
    register long d __asm__("r10") = a[3];
    register long e __asm__("r8") = a[4];
    register long f __asm__("r9") = a[5];
    long answer;
    __asm__ volatile("syscall"
                     : "=a"(answer)
                     : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(d), "r"(e), "r"(f)
                     : "rcx", "r11", "memory");
    return answer;
}
#elif defined(__aarch64__)
static long raw(long number, const long *a) {
    register long n __asm__("x8") = number;
    register long x0 __asm__("x0") = a[0];
    register long x1 __asm__("x1") = a[1];
    register long x2 __asm__("x2") = a[2];
    register long x3 __asm__("x3") = a[3];
    register long x4 __asm__("x4") = a[4];
    register long x5 __asm__("x5") = a[5];
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(n), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
#else
#error "system calls of this processor are not known here; the keeper forks instead"
#endif

static void leave(void) {
    static const long missed[ARGUMENTS] = {MISSED};
    for (;;)
        raw(SYS_exit_group, missed);
}

static int child(void *given) {
    static const long nothing[ARGUMENTS];
    struct order *order = given;
    long refused = 0;
    for (long at = 0; at < order->count; at++) {
        if (at == order->late && raw(SYS_getppid, nothing) != order->parent)
            leave(); /* it died before its death could be asked for as a signal */
        long answer = raw(order->steps[at].number, order->steps[at].arguments);
        if (answer >= 0)
            continue;
        order->error = -answer;
        if (at < order->exec) {
            order->failed = at;
            leave();
        }
        if (answer == -EACCES)
            refused = EACCES; /* counts for more than a miss, as in a shell */
        else if (answer != -ENOENT && answer != -ENOTDIR) {
            refused = -answer;
            break;
        }
    }
    order->error = refused ? refused : order->error;
    order->failed = order->exec;
    leave();
    return 0;
}

/* Returns the child's pid, or -errno without one. Order, steps and all that they point to must stay until `shared` is 0. */
int ostler_begin(struct order *order) {
    order->failed = -1;
    order->shared = 1;
    char *stack = stacks[order->place] + STACK_BYTES;
    int pid = clone(child, stack, CLONE_VM | CLONE_CHILD_CLEARTID | SIGCHLD, order, NULL, NULL, &order->shared);
    return pid < 0 ? -errno : pid;
}

/* Waits until `shared` is 0, at most so many milliseconds; returns it. */
int ostler_wait(struct order *order, long most_ms) {
    struct timespec now, until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += most_ms / 1000;
    until.tv_nsec += most_ms % 1000 * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    while (__atomic_load_n(&order->shared, __ATOMIC_ACQUIRE)) { /* a signal may come */
        clock_gettime(CLOCK_MONOTONIC, &now);
        struct timespec left = {.tv_sec = until.tv_sec - now.tv_sec, .tv_nsec = until.tv_nsec - now.tv_nsec};
        if (left.tv_nsec < 0) {
            left.tv_sec--;
            left.tv_nsec += 1000000000;
        }
        if (left.tv_sec < 0)
            break;
        syscall(SYS_futex, &order->shared, FUTEX_WAIT, 1, &left, NULL, 0);
    }
    return order->shared;
}
