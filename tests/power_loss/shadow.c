/* Preloaded into a process, writes down every change that it makes below one folder, and every force, in the order in which they
 * happened: a journal from which it can be told what a disk would hold after power loss at any moment.
 *
 *   SHADOW_DIR      the folder, as its canonical absolute path
 *   SHADOW_JOURNAL  the journal, outside of it; appended to, so that several lives of a process can share it
 *
 * A call is made, then its record written, both under one lock; so a process that is killed has at most its last change missing, whose
 * caller has not heard of it. A force is two records, for its beginning and its end: changes made meanwhile by others may or may not be
 * covered. What is done but not understood is a record as well, UNMODELLED.
 *
 * A record: struct record, its first path, its second path, its data. All integers in the machine's byte order.
 */
#include "system_calls.h"

enum kind {
    WRITE = 1,    /* inode, offset, data */
    RESIZE = 2,   /* inode, offset: its new length */
    CREATE = 3,   /* inode, path: a file */
    MKDIR = 4,    /* inode, path */
    LINK = 5,     /* inode, path: its further name */
    RENAME = 6,   /* path, other: its new name */
    UNLINK = 7,   /* path: a file */
    RMDIR = 8,    /* path */
    SYNC = 9,     /* inode (0: everything), offset: a number for the force, which begins */
    SYNCED = 10,  /* offset: the number of the force, which has ended well */
    MAPPED = 11,  /* inode, path: shared and writable, so changed unseen */
    UNMODELLED = 12 /* offset: the number of the system call, path */
};

struct record {
    uint32_t kind, path, other, unused;
    uint64_t inode, offset, data;
};

static int journal = -1;
static _Atomic uint64_t forces;

/* The journal must be whole: without it nothing is proven. */
static void put(const void *bytes, size_t length) {
    const char *at = bytes;
    while (length > 0) {
        long done = CALL(SYS_write, journal, at, length, 0, 0, 0);
        if (done == -EINTR) continue;
        if (done <= 0) __builtin_trap();
        at += done;
        length -= (size_t)done;
    }
}

static void note(struct record record, const char *path, const char *other) {
    record.path = path ? (uint32_t)strlen(path) : 0;
    record.other = other ? (uint32_t)strlen(other) : 0;
    put(&record, sizeof record);
    put(path, record.path);
    put(other, record.other);
}

static long unmodelled(long number, const long *a, const char *path) {
    lock();
    long result = again(number, a);
    if (result >= 0) note((struct record){.kind = UNMODELLED, .offset = (uint64_t)number}, path, NULL);
    unlock();
    return result;
}

/* All writes: the pieces are in memory, `positioned` ones begin at `offset`, others end where the file stands afterwards. */
static long written(long number, const long *a, const struct iovec *pieces, int count, int positioned, uint64_t offset) {
    struct stat status;
    char path[PATH_MAX];
    int descriptor = (int)a[0];
    if (!is_ours(descriptor, &status, path)) return again(number, a);
    lock();
    long result = again(number, a);
    if (result > 0) {
        if (!positioned) offset = (uint64_t)(CALL(SYS_lseek, descriptor, 0, SEEK_CUR, 0, 0, 0) - result);
        struct record record = {.kind = WRITE, .inode = status.st_ino, .offset = offset, .data = (uint64_t)result};
        put(&record, sizeof record);
        size_t left = (size_t)result;
        for (int i = 0; i < count && left > 0; i++) {
            size_t length = pieces[i].iov_len < left ? pieces[i].iov_len : left;
            put(pieces[i].iov_base, length);
            left -= length;
        }
    }
    unlock();
    return result;
}

static long resized(long number, const long *a) {
    struct stat status;
    char path[PATH_MAX];
    int descriptor = (int)a[0];
    if (!is_ours(descriptor, &status, path)) return again(number, a);
    if (number == SYS_fallocate && (a[1] & ~FALLOC_FL_KEEP_SIZE) != 0) return unmodelled(number, a, path);
    lock();
    long result = again(number, a);
    if (result == 0 && fstat(descriptor, &status) == 0)
        note((struct record){.kind = RESIZE, .inode = status.st_ino, .offset = (uint64_t)status.st_size}, NULL, NULL);
    unlock();
    return result;
}

static long opened(long number, const long *a, int at, const char *name, int flags) {
    struct stat before, after;
    char path[PATH_MAX];
    if ((flags & (O_CREAT | O_TRUNC)) == 0 || (flags & O_TMPFILE) == O_TMPFILE || !resolve(at, name, path)) return again(number, a);
    lock();
    int existed = fstatat(at, name, &before, 0) == 0;
    long result = again(number, a);
    if (result >= 0 && fstat((int)result, &after) == 0) {
        if (!existed)
            note((struct record){.kind = CREATE, .inode = after.st_ino}, path, NULL);
        else if ((flags & O_TRUNC) && S_ISREG(after.st_mode) && before.st_size != 0)
            note((struct record){.kind = RESIZE, .inode = after.st_ino}, NULL, NULL);
    }
    unlock();
    return result;
}

static long renamed(long number, const long *a, int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    char path[PATH_MAX], other[PATH_MAX];
    int leaves = resolve(from_at, from, path), comes = resolve(to_at, to, other);
    if (!leaves && !comes) return again(number, a);
    if (!leaves || !comes || (flags & ~RENAME_NOREPLACE)) return unmodelled(number, a, leaves ? path : other);
    lock();
    long result = again(number, a);
    if (result == 0) note((struct record){.kind = RENAME}, path, other);
    unlock();
    return result;
}

static long linked(long number, const long *a, int from_at, const char *from, int to_at, const char *to) {
    struct stat status;
    char path[PATH_MAX], other[PATH_MAX];
    if (!resolve(to_at, to, other)) return again(number, a);
    if (!resolve(from_at, from, path)) return unmodelled(number, a, other);
    lock();
    long result = again(number, a);
    if (result == 0 && fstatat(to_at, to, &status, AT_SYMLINK_NOFOLLOW) == 0)
        note((struct record){.kind = LINK, .inode = status.st_ino}, other, NULL);
    unlock();
    return result;
}

static long removed(long number, const long *a, int at, const char *name, enum kind kind) {
    char path[PATH_MAX];
    if (!resolve(at, name, path)) return again(number, a);
    lock();
    long result = again(number, a);
    if (result == 0) note((struct record){.kind = kind}, path, NULL);
    unlock();
    return result;
}

static long made_folder(long number, const long *a, int at, const char *name) {
    struct stat status;
    char path[PATH_MAX];
    if (!resolve(at, name, path)) return again(number, a);
    lock();
    long result = again(number, a);
    if (result == 0 && fstatat(at, name, &status, 0) == 0) note((struct record){.kind = MKDIR, .inode = status.st_ino}, path, NULL);
    unlock();
    return result;
}

static long forced(long number, const long *a, int descriptor) {
    struct stat status = {0};
    char path[PATH_MAX];
    if (descriptor >= 0 && !is_ours(descriptor, &status, path)) return again(number, a);
    uint64_t force = atomic_fetch_add(&forces, 1) | (uint64_t)CALL(SYS_getpid, 0, 0, 0, 0, 0, 0) << 32;
    lock();
    note((struct record){.kind = SYNC, .inode = status.st_ino, .offset = force}, NULL, NULL);
    unlock();
    long result = again(number, a);
    if (result == 0) {
        lock();
        note((struct record){.kind = SYNCED, .offset = force}, NULL, NULL);
        unlock();
    }
    return result;
}

static long mapped(long number, const long *a) {
    struct stat status;
    char path[PATH_MAX];
    int writable = (a[2] & PROT_WRITE) && ((a[3] & MAP_TYPE) == MAP_SHARED || (a[3] & MAP_TYPE) == MAP_SHARED_VALIDATE);
    if (!writable || (a[3] & MAP_ANONYMOUS) || !is_ours((int)a[4], &status, path)) return again(number, a);
    lock();
    note((struct record){.kind = MAPPED, .inode = status.st_ino}, path, NULL);
    unlock();
    return again(number, a);
}

/* Writes into a file of ours by way of the kernel. */
static long copied(long number, const long *a, int target) {
    struct stat status;
    char path[PATH_MAX];
    return is_ours(target, &status, path) ? unmodelled(number, a, path) : again(number, a);
}

static long created_otherwise(long number, const long *a, int at, const char *name) {
    char path[PATH_MAX];
    return resolve(at, name, path) ? unmodelled(number, a, path) : again(number, a);
}

static long shadowed(long number, const long *a) {
    switch (number) {
    case SYS_write: {
        struct iovec piece = {(void *)a[1], (size_t)a[2]};
        return written(number, a, &piece, 1, 0, 0);
    }
    case SYS_pwrite64: {
        struct iovec piece = {(void *)a[1], (size_t)a[2]};
        return written(number, a, &piece, 1, 1, (uint64_t)a[3]);
    }
    case SYS_writev: return written(number, a, (const struct iovec *)a[1], (int)a[2], 0, 0);
    case SYS_pwritev: return written(number, a, (const struct iovec *)a[1], (int)a[2], 1, (uint64_t)a[3]);
    case SYS_pwritev2: return written(number, a, (const struct iovec *)a[1], (int)a[2], a[3] != -1, (uint64_t)a[3]);
    case SYS_ftruncate:
    case SYS_fallocate: return resized(number, a);
    case SYS_openat: return opened(number, a, (int)a[0], (const char *)a[1], (int)a[2]);
    case SYS_renameat2: return renamed(number, a, (int)a[0], (const char *)a[1], (int)a[2], (const char *)a[3], (unsigned)a[4]);
#ifdef SYS_renameat
    case SYS_renameat: return renamed(number, a, (int)a[0], (const char *)a[1], (int)a[2], (const char *)a[3], 0);
#endif
    case SYS_linkat: return linked(number, a, (int)a[0], (const char *)a[1], (int)a[2], (const char *)a[3]);
    case SYS_unlinkat: return removed(number, a, (int)a[0], (const char *)a[1], (a[2] & AT_REMOVEDIR) ? RMDIR : UNLINK);
    case SYS_mkdirat: return made_folder(number, a, (int)a[0], (const char *)a[1]);
#ifdef SYS_open
    case SYS_open: return opened(number, a, AT_FDCWD, (const char *)a[0], (int)a[1]);
    case SYS_creat: return opened(number, a, AT_FDCWD, (const char *)a[0], O_CREAT | O_TRUNC);
    case SYS_rename: return renamed(number, a, AT_FDCWD, (const char *)a[0], AT_FDCWD, (const char *)a[1], 0);
    case SYS_link: return linked(number, a, AT_FDCWD, (const char *)a[0], AT_FDCWD, (const char *)a[1]);
    case SYS_unlink: return removed(number, a, AT_FDCWD, (const char *)a[0], UNLINK);
    case SYS_rmdir: return removed(number, a, AT_FDCWD, (const char *)a[0], RMDIR);
    case SYS_mkdir: return made_folder(number, a, AT_FDCWD, (const char *)a[0]);
    case SYS_symlink: return created_otherwise(number, a, AT_FDCWD, (const char *)a[1]);
    case SYS_mknod: return created_otherwise(number, a, AT_FDCWD, (const char *)a[0]);
#endif
    case SYS_symlinkat: return created_otherwise(number, a, (int)a[1], (const char *)a[2]);
    case SYS_mknodat: return created_otherwise(number, a, (int)a[0], (const char *)a[1]);
    case SYS_truncate: return created_otherwise(number, a, AT_FDCWD, (const char *)a[0]);
    case SYS_fsync:
    case SYS_fdatasync: return forced(number, a, (int)a[0]);
    case SYS_sync:
    case SYS_syncfs: return forced(number, a, -1);
    case SYS_mmap: return mapped(number, a);
    case SYS_copy_file_range:
    case SYS_splice: return copied(number, a, (int)a[2]);
    case SYS_sendfile: return copied(number, a, (int)a[0]);
    /* Nobody falls back from these but to what is above. */
    case SYS_openat2:
    case SYS_io_uring_setup:
    case SYS_io_setup: return -ENOSYS;
    default: return again(number, a);
    }
}

static const unsigned filtered[] = {
    SYS_write,   SYS_pwrite64,  SYS_writev,     SYS_pwritev,   SYS_pwritev2,        SYS_ftruncate, SYS_fallocate, SYS_openat,
    SYS_renameat2, SYS_linkat,  SYS_unlinkat,   SYS_mkdirat,   SYS_symlinkat,       SYS_mknodat,   SYS_truncate,  SYS_fsync,
    SYS_fdatasync, SYS_sync,    SYS_syncfs,     SYS_mmap,      SYS_copy_file_range, SYS_splice,    SYS_sendfile,  SYS_openat2,
    SYS_io_uring_setup, SYS_io_setup,
#ifdef SYS_renameat
    SYS_renameat,
#endif
#ifdef SYS_open
    SYS_open,    SYS_creat,     SYS_rename,     SYS_link,      SYS_unlink,          SYS_rmdir,     SYS_mkdir,     SYS_symlink,
    SYS_mknod,
#endif
};
__attribute__((constructor)) static void begin(void) {
    const char *dir = getenv("SHADOW_DIR"), *path = getenv("SHADOW_JOURNAL");
    if (!dir || !path) return;
    look_below(dir);
    journal = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (journal < 0) _exit(125);
    install(filtered, sizeof filtered / sizeof filtered[0]);
}
