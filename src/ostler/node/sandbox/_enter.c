/* Runs a program in namespaces of its own: what `bwrap` does with the options that plans.py uses, and no other, at half the cost.
 *
 * It needs no library, so nothing is loaded and nothing in the environment acts on it, and mounts by descriptors, each of
 * which stands with its flags from the moment it is there. Two processes stay around the command: a monitor, which is what
 * the caller started and which ends with the command's exit code (128 + n for a signal n); and the first process of the
 * sandbox, which reaps. With either of them all of it ends. A kernel without these calls (before 5.12), or one that refuses
 * namespaces to an ordinary user's program, is found out by the trial that abilities.py makes; then bwrap is used.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define MONITORED "bwrap: " /* what the daemon knows a sandbox's own words by */

/* The same on every architecture; older headers lack them. */
enum {
    OPEN_TREE = 428, MOVE_MOUNT = 429, FSOPEN = 430, FSCONFIG = 431, FSMOUNT = 432, CLOSE_RANGE = 436, OPENAT2 = 437,
    MOUNT_SETATTR = 442,
    TREE_CLONE = 1, FROM_EMPTY_PATH = 4, TO_EMPTY_PATH = 0x40, ALL_BELOW = 0x8000, EMPTY_PATH = 0x1000, CLOSE_ON_EXEC = 1,
    SET_FLAG = 0, SET_STRING = 1, CREATE = 6, IN_ROOT = 0x10,
    RDONLY = 1, NOSUID = 2, NODEV = 4, NOEXEC = 8,
    FILTER_BYTES = 4096 * 8, PATH_BYTES = 4096,
};

struct mount_flags { unsigned long set, clear, propagation, userns; };
struct how { unsigned long flags, mode, resolve; };

static char **environment;
static int root = -1, host_proc = -1;

/* --- the kernel --- */

static long call(long number, long a, long b, long c, long d, long e, long f) {
    long answer;
#if defined(__x86_64__)
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(answer) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c, x3 __asm__("x3") = d,
                  x4 __asm__("x4") = e, x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    answer = x0;
#else
#error "no system calls for this architecture"
#endif
    return answer; /* or -errno */
}

#define L(value) ((long)(value))
#define CALL1(n, a) call(n, L(a), 0, 0, 0, 0, 0)
#define CALL2(n, a, b) call(n, L(a), L(b), 0, 0, 0, 0)
#define CALL3(n, a, b, c) call(n, L(a), L(b), L(c), 0, 0, 0)
#define CALL4(n, a, b, c, d) call(n, L(a), L(b), L(c), L(d), 0, 0)
#define CALL5(n, a, b, c, d, e) call(n, L(a), L(b), L(c), L(d), L(e), 0)

/* The compiler calls these by name. */
void *memset(void *to, int value, unsigned long count) {
    for (unsigned char *at = to; count--;)
        *at++ = (unsigned char)value;
    return to;
}

void *memcpy(void *to, const void *from, unsigned long count) {
    const unsigned char *source = from;
    for (unsigned char *at = to; count--;)
        *at++ = *source++;
    return to;
}

/* --- words --- */

static unsigned long length(const char *text) {
    unsigned long count = 0;
    while (text[count])
        count++;
    return count;
}

static int same(const char *one, const char *other) {
    while (*one && *one == *other)
        one++, other++;
    return *one == *other;
}

static char *decimal(unsigned long value, char *end) { /* ends at `end`; returns where it begins */
    *--end = 0;
    do
        *--end = (char)('0' + value % 10);
    while (value /= 10);
    return end;
}

static unsigned long number(const char *text, unsigned base) {
    unsigned long value = 0;
    for (; *text >= '0' && *text < (char)('0' + base); text++)
        value = value * base + (unsigned long)(*text - '0');
    return value;
}

static void say(const char *text) { CALL3(SYS_write, 2, text, length(text)); }

static __attribute__((noreturn)) void leave(int code) {
    for (;;)
        CALL1(SYS_exit_group, code);
}

static __attribute__((noreturn)) void fail(const char *what, const char *name, long answer) {
    static const struct { int number; const char *text; } known[] = {
        {EPERM, "Operation not permitted"}, {ENOENT, "No such file or directory"}, {EACCES, "Permission denied"},
        {EINVAL, "Invalid argument"}, {ENOTDIR, "Not a directory"}, {ENOSYS, "Function not implemented"},
        {ENOSPC, "No space left on device"}, {ENOMEM, "Cannot allocate memory"}, {ENOEXEC, "Exec format error"},
        {EROFS, "Read-only file system"}, {E2BIG, "Argument list too long"}, {EMFILE, "Too many open files"},
        {EAGAIN, "Resource temporarily unavailable"}, {EBUSY, "Device or resource busy"}, {ELOOP, "Too many levels of symbolic links"},
    };
    char digits[24];
    say(MONITORED);
    say(what);
    if (*name)
        say(" "), say(name);
    if (answer < 0) {
        const char *why = 0;
        for (unsigned at = 0; at < sizeof known / sizeof *known; at++)
            if (known[at].number == -answer)
                why = known[at].text;
        say(": ");
        say(why ? why : "error ");
        if (!why)
            say(decimal((unsigned long)-answer, digits + sizeof digits));
    }
    say("\n");
    leave(1);
}

static long sure(long answer, const char *what, const char *name) {
    if (answer < 0)
        fail(what, name, answer);
    return answer;
}

/* --- places in the sandbox --- */

static void shut(long descriptor) { CALL1(SYS_close, descriptor); }

/* Links are followed within the sandbox's root, whatever they say. */
static long look(const char *path, int flags) {
    struct how how = {.flags = (unsigned long)(flags | O_CLOEXEC), .resolve = IN_ROOT};
    return CALL4(OPENAT2, root, path, &how, sizeof how);
}

/* Opens the directory above `path`, which is made where it is missing; `name` becomes the last part. */
static long above(const char *path, const char **name) {
    static char part[PATH_BYTES];
    long at = sure(look("/", O_PATH | O_DIRECTORY), "cannot open the new root", "");
    unsigned long from = 0, all = length(path);
    if (all >= sizeof part)
        fail("too long a path:", path, 0);
    while (all > 1 && path[all - 1] == '/')
        all--;
    memcpy(part, path, all + 1);
    part[all] = 0;
    *name = part;
    for (unsigned long to = 1; to < all; to++) {
        if (part[to] != '/')
            continue;
        while (part[from] == '/')
            from++;
        part[to] = 0;
        long next = look(part, O_PATH | O_DIRECTORY);
        if (next == -ENOENT) {
            sure(CALL3(SYS_mkdirat, at, part + from, 0755), "cannot make", part);
            next = look(part, O_PATH | O_DIRECTORY);
        }
        sure(next, "cannot open", part);
        part[to] = '/';
        shut(at);
        at = next;
        from = to + 1;
    }
    while (part[from] == '/')
        from++;
    *name = part + from;
    return at;
}

/* Opens a place to mount on, which is made where it is missing. */
static long place(const char *path, int directory) {
    long found = look(path, O_PATH);
    if (found != -ENOENT)
        return sure(found, "cannot open", path);
    const char *name;
    long folder = above(path, &name);
    if (directory)
        sure(CALL3(SYS_mkdirat, folder, name, 0755), "cannot make", path);
    else
        shut(sure(CALL4(SYS_openat, folder, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0444), "cannot make", path));
    shut(folder);
    return sure(look(path, O_PATH), "cannot open", path);
}

static void set_flags(long mount, unsigned long set, int below, const char *path) {
    struct mount_flags flags = {.set = set};
    sure(CALL5(MOUNT_SETATTR, mount, "", EMPTY_PATH | (below ? ALL_BELOW : 0), &flags, sizeof flags), "cannot set the flags of", path);
}

static void mount_on(long mount, const char *path, int directory) {
    long target = place(path, directory);
    sure(CALL5(MOVE_MOUNT, mount, "", target, "", FROM_EMPTY_PATH | TO_EMPTY_PATH), "cannot mount", path);
    shut(target);
    shut(mount);
}

static void show(const char *from, const char *to, unsigned long flags) {
    struct stat found;
    long tree = sure(CALL3(OPEN_TREE, AT_FDCWD, from, TREE_CLONE | O_CLOEXEC | ALL_BELOW), "cannot find", from);
    sure(CALL4(SYS_newfstatat, tree, "", &found, EMPTY_PATH), "cannot look at", from);
    set_flags(tree, flags, 1, from);
    mount_on(tree, to, S_ISDIR(found.st_mode));
}

/* A new file system, with `options` as pairs of name and value (no value: a flag). */
static long make(const char *kind, const char *const *options, unsigned long flags) {
    long made = sure(CALL2(FSOPEN, kind, CLOSE_ON_EXEC), "cannot make a", kind);
    for (; options && *options; options += 2)
        sure(CALL5(FSCONFIG, made, options[1] ? SET_STRING : SET_FLAG, options[0], options[1], 0), "cannot set an option of a", kind);
    sure(CALL5(FSCONFIG, made, CREATE, 0, 0, 0), "cannot make a", kind);
    long mount = sure(CALL3(FSMOUNT, made, CLOSE_ON_EXEC, flags), "cannot mount a", kind);
    shut(made);
    return mount;
}

static void make_devices(const char *path) {
    static const char *const nodes[] = {"null", "zero", "full", "random", "urandom", "tty"};
    static const char *const links[] = {
        "/proc/self/fd/0", "stdin", "/proc/self/fd/1", "stdout", "/proc/self/fd/2", "stderr",
        "/proc/self/fd", "fd", "/proc/kcore", "core", "pts/ptmx", "ptmx",
    };
    static const char *const small[] = {"mode", "0755", 0}, *const terminals[] = {"ptmxmode", "0666", "mode", "620", 0};
    mount_on(make("tmpfs", small, NOSUID | NODEV), path, 1);
    long folder = sure(look(path, O_PATH | O_DIRECTORY), "cannot open", path);
    for (unsigned at = 0; at < sizeof nodes / sizeof *nodes; at++) {
        char from[16] = "/dev/";
        memcpy(from + 5, nodes[at], length(nodes[at]) + 1);
        long tree = sure(CALL3(OPEN_TREE, AT_FDCWD, from, TREE_CLONE | O_CLOEXEC), "cannot find", from);
        set_flags(tree, NOSUID, 0, from);
        shut(sure(CALL4(SYS_openat, folder, nodes[at], O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0444), "cannot make", from));
        sure(CALL5(MOVE_MOUNT, tree, "", folder, nodes[at], FROM_EMPTY_PATH), "cannot mount", from);
        shut(tree);
    }
    for (unsigned at = 0; at < sizeof links / sizeof *links; at += 2)
        sure(CALL3(SYS_symlinkat, links[at], folder, links[at + 1]), "cannot make a link in", path);
    sure(CALL3(SYS_mkdirat, folder, "shm", 0755), "cannot make a folder in", path);
    sure(CALL3(SYS_mkdirat, folder, "pts", 0755), "cannot make a folder in", path);
    long pts = make("devpts", terminals, NOSUID | NOEXEC);
    sure(CALL5(MOVE_MOUNT, pts, "", folder, "pts", FROM_EMPTY_PATH), "cannot mount", "pts");
    shut(pts);
    shut(folder);
}

/* --- the rights that are left --- */

static void write_proc(const char *name, const char *text) {
    long file = sure(CALL4(SYS_openat, host_proc, name, O_WRONLY | O_CLOEXEC, 0), "cannot open", name);
    sure(CALL3(SYS_write, file, text, length(text)), "cannot write", name);
    shut(file);
}

/* One user and one group, who are `outside` out there. */
static void map_ids(unsigned long uid, unsigned long outside_uid, unsigned long gid, unsigned long outside_gid) {
    const unsigned long pairs[2][2] = {{uid, outside_uid}, {gid, outside_gid}};
    write_proc("self/setgroups", "deny");
    for (int which = 0; which < 2; which++) {
        char text[64], digits[24];
        unsigned long at = 0;
        for (int one = 0; one < 2; one++) {
            const char *value = decimal(pairs[which][one], digits + sizeof digits);
            memcpy(text + at, value, length(value));
            at += length(value);
            text[at++] = ' ';
        }
        text[at++] = '1';
        text[at] = 0;
        write_proc(which ? "self/gid_map" : "self/uid_map", text);
    }
}

static void drop_capabilities(int for_good) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
    for (int one = 0; for_good && one < 64; one++) {
        long answer = CALL5(SYS_prctl, PR_CAPBSET_DROP, one, 0, 0, 0);
        if (answer == -EINVAL)
            break; /* the last one that this kernel knows was before */
        sure(answer, "cannot drop a capability", "");
    }
    sure(CALL2(SYS_capset, &header, none), "cannot drop capabilities", "");
}

static void filter_calls(const struct sock_fprog *program) {
    if (program->len)
        sure(CALL5(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0), "cannot filter system calls", "");
}

static void raise_loopback(void) {
    struct ifreq request;
    memset(&request, 0, sizeof request);
    memcpy(request.ifr_name, "lo", 3);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    long channel = sure(CALL3(SYS_socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "cannot open a socket", "");
    sure(CALL3(SYS_ioctl, channel, SIOCSIFFLAGS, &request), "cannot raise the loopback device", "");
    shut(channel);
}

static void die_with_parent(void) { sure(CALL5(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "cannot follow the parent", ""); }

static void keep_only(long one, long other) { /* beside the standard streams; -1 is none */
    long low = one < other ? one : other, high = one < other ? other : one, from = 3;
    for (long kept = low; from <= high; kept = high) {
        if (kept > from)
            sure(CALL3(CLOSE_RANGE, from, kept - 1, 0), "cannot close what was open", "");
        from = kept >= from ? kept + 1 : from;
    }
    sure(CALL3(CLOSE_RANGE, from, ~0U, 0), "cannot close what was open", "");
}

static int code_of(int status) { return status & 0x7f ? 128 + (status & 0x7f) : (status >> 8) & 0xff; }

static int wait_for(long pid) {
    for (;;) {
        int status;
        long ended = CALL4(SYS_wait4, -1, &status, 0, 0);
        if (ended == pid)
            return code_of(status);
        if (ended < 0 && ended != -EINTR)
            fail("cannot wait for the command", "", ended);
    }
}

/* --- the plan --- */

struct plan {
    unsigned long namespaces;
    int session, sync;
    const char *host, *folder;
    char **steps, **command; /* what is mounted, in order; up to NULL */
    struct sock_fprog filter;
    char **variables; /* name, value, name, value */
    int added;
};

static char *next(char ***at, const char *option) {
    if (!**at)
        fail("a value is missing after", option, 0);
    return *(*at)++;
}

static void read_filter(struct plan *plan, long descriptor) {
    static char filter[FILTER_BYTES + 1];
    long count = sure(CALL3(SYS_read, descriptor, filter, sizeof filter), "cannot read the filter", "");
    if (count == 0 || count % (long)sizeof(struct sock_filter) || count > FILTER_BYTES)
        fail("this is no filter of system calls", "", 0);
    shut(descriptor);
    plan->filter.len = (unsigned short)(count / (long)sizeof(struct sock_filter));
    plan->filter.filter = (struct sock_filter *)(void *)filter;
}

/* Takes what is no mount out of the arguments; the mounts stay in `steps`, with their values. */
static void read_plan(struct plan *plan, char **arguments) {
    char **kept = plan->steps = arguments;
    char **variables = plan->variables;
    while (*arguments) {
        char *option = *arguments++;
        if (same(option, "--")) {
            *kept = 0;
            plan->command = arguments;
            if (!*arguments)
                break;
            return;
        }
        if (same(option, "--unshare-pid")) plan->namespaces |= CLONE_NEWPID;
        else if (same(option, "--unshare-ipc")) plan->namespaces |= CLONE_NEWIPC;
        else if (same(option, "--unshare-uts")) plan->namespaces |= CLONE_NEWUTS;
        else if (same(option, "--unshare-cgroup-try")) plan->namespaces |= CLONE_NEWCGROUP;
        else if (same(option, "--unshare-net")) plan->namespaces |= CLONE_NEWNET;
        else if (same(option, "--unshare-user")) plan->namespaces |= CLONE_NEWUSER;
        else if (same(option, "--die-with-parent")) continue; /* it always does */
        else if (same(option, "--new-session")) plan->session = 1;
        else if (same(option, "--cap-drop")) next(&arguments, option); /* all of them are, always */
        else if (same(option, "--hostname")) plan->host = next(&arguments, option);
        else if (same(option, "--chdir")) plan->folder = next(&arguments, option);
        else if (same(option, "--seccomp")) read_filter(plan, (long)number(next(&arguments, option), 10));
        else if (same(option, "--sync-fd")) plan->sync = (int)number(next(&arguments, option), 10);
        else if (same(option, "--setenv")) {
            *variables++ = next(&arguments, option);
            *variables++ = next(&arguments, option);
            plan->added++;
        } else {
            int two = same(option, "--ro-bind") || same(option, "--bind") || same(option, "--dev-bind") || same(option, "--symlink");
            if (!two && !same(option, "--proc") && !same(option, "--dev") && !same(option, "--tmpfs") && !same(option, "--perms") &&
                !same(option, "--size") && !same(option, "--remount-ro"))
                fail("unknown option", option, 0);
            *kept++ = option;
            *kept++ = next(&arguments, option);
            if (two)
                *kept++ = next(&arguments, option);
        }
    }
    fail("no command was given", "", 0);
}

static void carry_out(char **steps) {
    const char *options[] = {"mode", "0755", 0, 0, 0}, *name;
    while (*steps) {
        char *step = *steps++, *value = *steps++;
        if (same(step, "--ro-bind")) show(value, *steps++, RDONLY | NOSUID | NODEV);
        else if (same(step, "--bind")) show(value, *steps++, NOSUID | NODEV);
        else if (same(step, "--dev-bind")) show(value, *steps++, NOSUID);
        else if (same(step, "--proc")) mount_on(make("proc", 0, NOSUID | NODEV | NOEXEC), value, 1);
        else if (same(step, "--dev")) make_devices(value);
        else if (same(step, "--perms")) options[1] = value;
        else if (same(step, "--size")) options[2] = "size", options[3] = value;
        else if (same(step, "--tmpfs")) {
            mount_on(make("tmpfs", options, NOSUID | NODEV), value, 1);
            options[1] = "0755";
            options[2] = 0;
        } else if (same(step, "--symlink")) {
            long folder = above(*steps, &name);
            sure(CALL3(SYS_symlinkat, value, folder, name), "cannot make the link", *steps++);
            shut(folder);
        } else { /* --remount-ro */
            long mount = sure(look(value, O_PATH), "cannot open", value);
            set_flags(mount, RDONLY, 0, value);
            shut(mount);
        }
    }
}

/* A root in memory, laid over the old one: until it changes places with that, every path is still one of the host's. */
static void change_root(char **steps) {
    static const char *const small[] = {"mode", "0755", 0};
    sure(CALL5(SYS_mount, "none", "/", 0, MS_REC | MS_SLAVE, 0), "cannot part from the host's mounts", "");
    long old = sure(CALL4(SYS_openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0), "cannot open", "/");
    root = (int)make("tmpfs", small, NOSUID | NODEV);
    sure(CALL5(MOVE_MOUNT, root, "", AT_FDCWD, "/", FROM_EMPTY_PATH), "cannot mount the new root", "");
    carry_out(steps);
    sure(CALL1(SYS_fchdir, root), "cannot enter the new root", "");
    sure(CALL2(SYS_pivot_root, ".", "."), "cannot change the root", "");
    sure(CALL1(SYS_fchdir, old), "cannot enter the old root", "");
    sure(CALL2(SYS_umount2, ".", MNT_DETACH), "cannot leave the old root", "");
    sure(CALL1(SYS_chdir, "/"), "cannot enter", "/");
    shut(old);
    shut(root);
}

static void execute(const struct plan *plan) {
    unsigned long count = 0;
    while (environment[count])
        count++;
    char *all[count + (unsigned long)plan->added + 1];
    memcpy(all, environment, count * sizeof *all);
    for (int one = 0; one < plan->added; one++) { /* plans name none that is there already */
        static char texts[1 << 18];
        static unsigned long used;
        const char *name = plan->variables[2 * one], *value = plan->variables[2 * one + 1];
        unsigned long of_name = length(name), of_value = length(value);
        if (of_name + of_value + 2 > sizeof texts - used)
            fail("too long a value of", name, 0);
        all[count++] = texts + used;
        memcpy(texts + used, name, of_name);
        texts[used + of_name] = '=';
        memcpy(texts + used + of_name + 1, value, of_value + 1);
        used += of_name + of_value + 2;
    }
    all[count] = 0;
    fail("execvp", plan->command[0], CALL3(SYS_execve, plan->command[0], plan->command, all));
}

static __attribute__((noreturn)) void first_process(struct plan *plan, long life, unsigned long uid, unsigned long gid) {
    struct pollfd monitor = {.fd = (int)life, .events = POLLIN};
    struct timespec { long s, ns; } at_once = {0, 0};
    die_with_parent();
    if (CALL5(SYS_ppoll, &monitor, 1, &at_once, 0, 0) != 0)
        leave(1); /* it died before its death could be asked for as a signal */
    shut(life);
    int owned = (plan->namespaces & CLONE_NEWUSER) != 0;
    if (owned) /* as root of its own, for without one no terminals can be made; changed back below */
        map_ids(0, uid, 0, gid);
    if (plan->namespaces & CLONE_NEWNET)
        raise_loopback();
    if (plan->host)
        sure(CALL2(SYS_sethostname, plan->host, length(plan->host)), "cannot set the host's name", "");
    long mask = CALL1(SYS_umask, 0);
    change_root(plan->steps);
    CALL1(SYS_umask, mask);
    if (owned && (uid || gid)) {
        sure(CALL1(SYS_unshare, CLONE_NEWUSER), "cannot make a user namespace", "");
        map_ids(uid, 0, gid, 0);
    }
    die_with_parent(); /* again: what changes rights may have cleared it */
    shut(host_proc);
    drop_capabilities(1);
    if (plan->folder)
        sure(CALL1(SYS_chdir, plan->folder), "cannot enter", plan->folder);
    if (plan->session)
        sure(CALL1(SYS_setsid, 0), "cannot make a session", "");
    long pid = sure(CALL5(SYS_clone, SIGCHLD, 0, 0, 0, 0), "cannot make a process", "");
    if (pid == 0) {
        if (plan->sync >= 0)
            shut(plan->sync);
        filter_calls(&plan->filter);
        execute(plan);
    }
    /* so that the command cannot open this program's file through /proc, where it may be its user's to write */
    sure(CALL5(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0), "cannot hide the first process", "");
    keep_only(plan->sync, -1);
    filter_calls(&plan->filter);
    leave(wait_for(pid)); /* and the kernel ends all that is left */
}

static __attribute__((noreturn, used)) void start(char **stack) {
    long count = *(long *)(void *)stack;
    int ends[2]; /* a pipe that ends with the monitor */
    char **arguments = stack + 1, *variables[count + 2];
    struct plan plan = {.namespaces = CLONE_NEWNS, .sync = -1, .variables = variables};
    environment = arguments + count + 1;
    if (count < 1)
        leave(1);
    read_plan(&plan, arguments + 1);
    sure(CALL5(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "cannot forbid new privileges", "");
    die_with_parent();
    unsigned long uid = (unsigned long)CALL1(SYS_geteuid, 0), gid = (unsigned long)CALL1(SYS_getegid, 0);
    if (uid)
        plan.namespaces |= CLONE_NEWUSER; /* an ordinary user has no others without it */
    host_proc = (int)sure(CALL4(SYS_openat, AT_FDCWD, "/proc", O_PATH | O_DIRECTORY | O_CLOEXEC, 0), "cannot open", "/proc");
    sure(CALL2(SYS_pipe2, ends, O_CLOEXEC), "cannot make a pipe", "");
    long pid = sure(CALL5(SYS_clone, plan.namespaces | SIGCHLD, 0, 0, 0, 0), "cannot make namespaces", "");
    if (pid == 0) {
        shut(ends[1]);
        first_process(&plan, ends[0], uid, gid);
    }
    if (!uid)
        drop_capabilities(0);
    keep_only(plan.sync, ends[1]);
    leave(wait_for(pid));
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n xor %ebp,%ebp\n mov %rsp,%rdi\n and $-16,%rsp\n call start\n hlt\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n mov x29,#0\n mov x30,#0\n mov x0,sp\n and sp,x0,#-16\n bl start\n");
#endif
