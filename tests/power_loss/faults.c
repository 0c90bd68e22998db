/* Preloaded into a process, counts what it does to the files below one folder, and lets some of it fail.
 *
 *   FAULTS_DIR      the folder, as its canonical absolute path
 *   FAULTS_CONTROL  a file outside of it, of the size of struct control: what fails, and the counts; shared, and changed while this runs
 *
 * A call that fails is not made, so what it should have changed is as it was. Files are told apart by patterns, the first that fits;
 * reading by way of a mapping is no call, and never fails here.
 */
#include "system_calls.h"

/* What is counted, and can fail. */
enum call { OPEN, CREATE, READ, WRITE, RESIZE, SYNC, RENAME, REMOVE, MAKE_FOLDER, MAP, CALLS };

#define FILES 32
#define PATTERN 48

struct control {
    /* 1: the rule below holds. */
    _Atomic uint32_t armed;
    /* Bits: which kinds of files, and which calls it concerns. */
    uint32_t files, calls;
    /* What they say; 0: nothing, they only are short. */
    uint32_t error;
    /* 1: a read or write does half of what it should, and only the next one says the error. */
    uint32_t is_short, unused;
    /* Of the calls that it concerns, counted from 1: the first that fails, and how many do. */
    uint64_t first, count;
    _Atomic uint64_t seen, failed;
    /* Since the file was made. */
    _Atomic uint64_t done[FILES][CALLS], failures[FILES][CALLS];
    /* Of paths below the folder; one `*` stands for anything. The first that fits is the kind. */
    char patterns[FILES][PATTERN];
};

static struct control *control;

enum verdict { PASS, FAIL, HALF };

static int fits(const char *pattern, const char *path) {
    const char *star = strchr(pattern, '*');
    if (!star) return strcmp(pattern, path) == 0;
    size_t before = (size_t)(star - pattern), after = strlen(star + 1), length = strlen(path);
    return length >= before + after && strncmp(pattern, path, before) == 0 && strcmp(star + 1, path + length - after) == 0;
}

static int kind_of(const char *path) {
    const char *below = path + folder_length;
    while (*below == '/') below++;
    for (int kind = 0; kind < FILES; kind++)
        if (control->patterns[kind][0] && fits(control->patterns[kind], below)) return kind;
    return -1;
}

/* Counts it, and says what becomes of it. */
static enum verdict verdict(const char *path, enum call call) {
    int kind = kind_of(path);
    if (kind < 0) return PASS;
    atomic_fetch_add(&control->done[kind][call], 1);
    if (!atomic_load(&control->armed) || !(control->files >> kind & 1) || !(control->calls >> call & 1)) return PASS;
    uint64_t number = atomic_fetch_add(&control->seen, 1) + 1;
    if (number < control->first || number - control->first >= control->count) return PASS;
    atomic_fetch_add(&control->failed, 1);
    atomic_fetch_add(&control->failures[kind][call], 1);
    int halves = (call == READ || call == WRITE) && control->is_short && (number == control->first || control->error == 0);
    return halves ? HALF : control->error ? FAIL : PASS;
}

static long on_path(long number, const long *a, int at, const char *name, enum call call) {
    char path[PATH_MAX];
    if (resolve(at, name, path) && verdict(path, call) == FAIL) return -(long)control->error;
    return again(number, a);
}

static long opened(long number, const long *a, int at, const char *name, int flags) {
    struct stat before;
    int creates = (flags & O_CREAT) && fstatat(at, name, &before, 0) != 0;
    return on_path(number, a, at, name, creates ? CREATE : OPEN);
}

static long on_descriptor(long number, const long *a, int descriptor, enum call call) {
    struct stat status;
    char path[PATH_MAX];
    if (is_ours(descriptor, &status, path) && verdict(path, call) == FAIL) return -(long)control->error;
    return again(number, a);
}

/* The third argument is how many bytes. */
static long moved(long number, const long *a, enum call call) {
    struct stat status;
    char path[PATH_MAX];
    if (!is_ours((int)a[0], &status, path)) return again(number, a);
    switch (verdict(path, call)) {
    case FAIL: return -(long)control->error;
    case HALF: {
        long half[6] = {a[0], a[1], a[2] > 1 ? a[2] / 2 : a[2], a[3], a[4], a[5]};
        return again(number, half);
    }
    case PASS: break;
    }
    return again(number, a);
}

/* Pieces in memory: of those that are cut short, half of the first is moved. */
static long moved_pieces(long number, const long *a, enum call call) {
    struct stat status;
    char path[PATH_MAX];
    if (!is_ours((int)a[0], &status, path)) return again(number, a);
    switch (verdict(path, call)) {
    case FAIL: return -(long)control->error;
    case HALF: {
        struct iovec piece = *(const struct iovec *)a[1];
        if (piece.iov_len > 1) piece.iov_len /= 2;
        return CALL(number, a[0], &piece, 1, a[3], a[4], a[5]);
    }
    case PASS: break;
    }
    return again(number, a);
}

static long shadowed(long number, const long *a) {
    switch (number) {
    case SYS_read:
    case SYS_pread64: return moved(number, a, READ);
    case SYS_write:
    case SYS_pwrite64: return moved(number, a, WRITE);
    case SYS_readv:
    case SYS_preadv: return moved_pieces(number, a, READ);
    case SYS_writev:
    case SYS_pwritev: return moved_pieces(number, a, WRITE);
    case SYS_getdents64: return on_descriptor(number, a, (int)a[0], READ);
    case SYS_ftruncate:
    case SYS_fallocate: return on_descriptor(number, a, (int)a[0], RESIZE);
    case SYS_fsync:
    case SYS_fdatasync:
    case SYS_sync_file_range: return on_descriptor(number, a, (int)a[0], SYNC);
    case SYS_mmap: return a[3] & MAP_ANONYMOUS ? again(number, a) : on_descriptor(number, a, (int)a[4], MAP);
    case SYS_openat: return opened(number, a, (int)a[0], (const char *)a[1], (int)a[2]);
    case SYS_renameat2: return on_path(number, a, (int)a[2], (const char *)a[3], RENAME);
#ifdef SYS_renameat
    case SYS_renameat: return on_path(number, a, (int)a[2], (const char *)a[3], RENAME);
#endif
    case SYS_linkat: return on_path(number, a, (int)a[2], (const char *)a[3], CREATE);
    case SYS_unlinkat: return on_path(number, a, (int)a[0], (const char *)a[1], REMOVE);
    case SYS_mkdirat: return on_path(number, a, (int)a[0], (const char *)a[1], MAKE_FOLDER);
#ifdef SYS_open
    case SYS_open: return opened(number, a, AT_FDCWD, (const char *)a[0], (int)a[1]);
    case SYS_creat: return opened(number, a, AT_FDCWD, (const char *)a[0], O_CREAT | O_TRUNC);
    case SYS_rename: return on_path(number, a, AT_FDCWD, (const char *)a[1], RENAME);
    case SYS_link: return on_path(number, a, AT_FDCWD, (const char *)a[1], CREATE);
    case SYS_unlink:
    case SYS_rmdir: return on_path(number, a, AT_FDCWD, (const char *)a[0], REMOVE);
    case SYS_mkdir: return on_path(number, a, AT_FDCWD, (const char *)a[0], MAKE_FOLDER);
#endif
    case SYS_truncate: return on_path(number, a, AT_FDCWD, (const char *)a[0], RESIZE);
    /* Nobody falls back from these but to what is above. */
    default: return -ENOSYS;
    }
}

static const unsigned filtered[] = {
    SYS_read,      SYS_pread64,  SYS_write,           SYS_pwrite64, SYS_readv,    SYS_preadv,    SYS_writev,         SYS_pwritev,
    SYS_getdents64, SYS_ftruncate, SYS_fallocate,     SYS_fsync,    SYS_fdatasync, SYS_sync_file_range, SYS_mmap,    SYS_openat,
    SYS_renameat2, SYS_linkat,   SYS_unlinkat,        SYS_mkdirat,  SYS_truncate, SYS_preadv2,   SYS_pwritev2,       SYS_openat2,
    SYS_io_uring_setup, SYS_io_setup, SYS_copy_file_range,
#ifdef SYS_renameat
    SYS_renameat,
#endif
#ifdef SYS_open
    SYS_open,      SYS_creat,    SYS_rename,          SYS_link,     SYS_unlink,   SYS_rmdir,     SYS_mkdir,
#endif
};

__attribute__((constructor)) static void begin(void) {
    const char *dir = getenv("FAULTS_DIR"), *path = getenv("FAULTS_CONTROL");
    if (!dir || !path) return;
    look_below(dir);
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) _exit(125);
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (control == MAP_FAILED) _exit(125);
    install(filtered, sizeof filtered / sizeof filtered[0]);
}
