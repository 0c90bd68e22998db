/* System calls of this very process, taken over: a seccomp filter turns them into a signal, so code that calls the kernel without the C
 * library is seen too. Included once by each library that is preloaded.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#define ARGUMENT(c, n) ((c)->uc_mcontext.gregs[(const int[]){REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8, REG_R9}[n]])
#define RESULT(c) ((c)->uc_mcontext.gregs[REG_RAX])
__asm__(".text\n.globl shadow_call\n.hidden shadow_call\n.globl shadow_called\n.hidden shadow_called\n"
        "shadow_call:\n mov %rdi,%rax\n mov %rsi,%rdi\n mov %rdx,%rsi\n mov %rcx,%rdx\n mov %r8,%r10\n mov %r9,%r8\n mov 8(%rsp),%r9\n"
        " syscall\nshadow_called:\n ret\n");
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#define ARGUMENT(c, n) ((c)->uc_mcontext.regs[n])
#define RESULT(c) ((c)->uc_mcontext.regs[0])
__asm__(".text\n.globl shadow_call\n.hidden shadow_call\n.globl shadow_called\n.hidden shadow_called\n"
        "shadow_call:\n mov x8,x0\n mov x0,x1\n mov x1,x2\n mov x2,x3\n mov x3,x4\n mov x4,x5\n mov x5,x6\n svc #0\nshadow_called:\n ret\n");
#else
#error "the registers of this machine's system calls are not known here"
#endif

/* The one place from which a filtered system call passes, and the address after it. */
long shadow_call(long number, long a, long b, long c, long d, long e, long f);
extern const char shadow_called[];
#define CALL(number, a, b, c, d, e, f) shadow_call(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

/* The folder that is looked at, as its canonical absolute path. */
static char folder[PATH_MAX];
static size_t folder_length;

/* So many calls can be filtered. */
#define FILTERED_MAX 64

static int is_below(const char *path) {
    return strncmp(path, folder, folder_length) == 0 && (path[folder_length] == '/' || path[folder_length] == 0);
}

static int link_target(const char *link, char *path) {
    long length = CALL(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1, 0, 0);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

static int path_of_descriptor(int descriptor, char *path) {
    char link[32] = "/proc/self/fd/", digits[12];
    int n = 0, at = 14;
    if (descriptor < 0) return 0;
    do digits[n++] = (char)('0' + descriptor % 10); while (descriptor /= 10);
    while (n > 0) link[at++] = digits[--n];
    link[at] = 0;
    return link_target(link, path);
}

/* Makes a name absolute; the folder part of it is taken as it stands. True if it lies in our folder. */
static int resolve(int at, const char *name, char *path) {
    if (name[0] == '/') {
        if (strlen(name) >= PATH_MAX) return 0;
        strcpy(path, name);
    } else {
        if (!(at == AT_FDCWD ? link_target("/proc/self/cwd", path) : path_of_descriptor(at, path))) return 0;
        size_t length = strlen(path);
        if (length + 1 + strlen(name) >= PATH_MAX) return 0;
        path[length] = '/';
        strcpy(path + length + 1, name);
    }
    return is_below(path);
}

/* True if the descriptor is a file or folder in our folder. */
static int is_ours(int descriptor, struct stat *status, char *path) {
    return fstat(descriptor, status) == 0 && (S_ISREG(status->st_mode) || S_ISDIR(status->st_mode)) &&
           path_of_descriptor(descriptor, path) && is_below(path);
}

static long again(long number, const long *a) { return CALL(number, a[0], a[1], a[2], a[3], a[4], a[5]); }

/* Held while the library looks at what all threads share. */
static atomic_flag locked = ATOMIC_FLAG_INIT;

static void lock(void) {
    while (atomic_flag_test_and_set_explicit(&locked, memory_order_acquire)) CALL(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
}

static void unlock(void) { atomic_flag_clear_explicit(&locked, memory_order_release); }

/* What becomes of a filtered call; its arguments as the kernel gets them. */
static long shadowed(long number, const long *a);

static void on_call(int signal, siginfo_t *info, void *context) {
    (void)signal;
    ucontext_t *c = context;
    int before = errno;
    long arguments[6];
    for (int i = 0; i < 6; i++) arguments[i] = (long)ARGUMENT(c, i);
    RESULT(c) = shadowed(info->si_syscall, arguments);
    errno = before;
}

/* From now on these calls come to `shadowed`, of all threads. */
static void install(const unsigned *filtered, size_t count) {
    struct sigaction action = {.sa_sigaction = on_call, .sa_flags = SA_SIGINFO};
    if (count > FILTERED_MAX) _exit(125);
    sigfillset(&action.sa_mask);
    struct sock_filter program[8 + 2 * FILTERED_MAX];
    uint64_t passes = (uint64_t)shadow_called;
    size_t n = 0;
    program[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer));
    program[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)passes, 0, 3);
    program[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4);
    program[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(passes >> 32), 0, 1);
    program[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    program[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (size_t i = 0; i < count; i++) {
        program[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, filtered[i], 0, 1);
        program[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
    }
    program[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog filter = {.len = (unsigned short)n, .filter = program};
    if (sigaction(SIGSYS, &action, NULL) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0)
        _exit(125);
}

static void look_below(const char *path) {
    folder_length = strlen(path);
    if (folder_length >= sizeof folder) _exit(125);
    strcpy(folder, path);
}
