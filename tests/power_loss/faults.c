/* Preloaded into a process, counts what it does to the files below one folder, and lets some of it fail.
 *
 *   FAULTS_DIR      the folder, as its canonical absolute path
 *   FAULTS_CONTROL  a file outside of it, of the size of struct control: what fails, and the counts; shared, and changed while this runs
 *
 * A call that fails is not made, so what it should have changed is as it was. Files are told apart by patterns, the first that fits;
 * reading by way of a mapping is no call, and never fails here. What is sent over a socket is counted, too, by the port of who gets it.
 *
 * Instead of failing, a call can end the process before it is made. Nothing but these calls leaves the process: to end before each of them
 * is to end at every step.
 *
 * A force that fails is a kernel's: it tells once that pages could not be written, takes them for written from then on, and shows what they
 * should hold until it needs their memory. Here they are dropped, so that the file holds what the disk has, when that is asked for
 * (POSIX_FADV_DONTNEED) and when the next process begins.
 */
#include "system_calls.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

/* What is counted, and can fail. */
enum call { OPEN, CREATE, READ, WRITE, RESIZE, SYNC, RENAME, REMOVE, MAKE_FOLDER, MAP, SEND, CALLS };

#define FILES 32
#define PATTERN 48

/* Pages that are kept, and bytes of one; more that are written meanwhile count as written by the kernel in time. */
#define PAGES 4096
#define PAGE 4096
#define TRIES 32

enum page_state { UNUSED, DIRTY, LOST };

/* A page that was written and not forced since: what the disk has of it. */
struct page {
    _Atomic uint32_t state;
    uint32_t unused;
    uint64_t inode, number;
    /* Below the folder. */
    char path[128];
    char bytes[PAGE];
};

struct control {
    /* 1: the rule below holds. */
    _Atomic uint32_t armed;
    /* Bits: which kinds of files, and which calls it concerns. */
    uint32_t files, calls;
    /* What they say; 0: nothing, they only are short. */
    uint32_t error;
    /* 1: a read or write does half of what it should, and only the next one says the error. */
    uint32_t is_short;
    /* 1: instead of failing, the process is killed. */
    uint32_t kills;
    /* Of the calls that it concerns, counted from 1: the first that fails, and how many do. */
    uint64_t first, count;
    _Atomic uint64_t seen, failed;
    /* Since the file was made. */
    _Atomic uint64_t done[FILES][CALLS], failures[FILES][CALLS];
    /* Of paths below the folder, or `port N` for a socket; one `*` stands for anything. The first that fits is the kind. */
    char patterns[FILES][PATTERN];
    /* Pages that were dropped because somebody asked for it; those that are not UNUSED; and they. */
    _Atomic uint64_t dropped, kept;
    struct page pages[PAGES];
};

static struct control *control;

enum verdict { PASS, FAIL, HALF };

static int fits(const char *pattern, const char *path) {
    const char *star = strchr(pattern, '*');
    if (!star) return strcmp(pattern, path) == 0;
    size_t before = (size_t)(star - pattern), after = strlen(star + 1), length = strlen(path);
    return length >= before + after && strncmp(pattern, path, before) == 0 && strcmp(star + 1, path + length - after) == 0;
}

static int kind_named(const char *name) {
    for (int kind = 0; kind < FILES; kind++)
        if (control->patterns[kind][0] && fits(control->patterns[kind], name)) return kind;
    return -1;
}

static int kind_of(const char *path) {
    const char *below = path + folder_length;
    while (*below == '/') below++;
    return kind_named(below);
}

static void die(void) {
    CALL(SYS_kill, CALL(SYS_getpid, 0, 0, 0, 0, 0, 0), SIGKILL, 0, 0, 0, 0);
    for (;;) CALL(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
}

/* Counts it, and says what becomes of it. */
static enum verdict verdict_of(int kind, enum call call) {
    if (kind < 0) return PASS;
    atomic_fetch_add(&control->done[kind][call], 1);
    if (!atomic_load(&control->armed) || !(control->files >> kind & 1) || !(control->calls >> call & 1)) return PASS;
    uint64_t number = atomic_fetch_add(&control->seen, 1) + 1;
    if (number < control->first || number - control->first >= control->count) return PASS;
    atomic_fetch_add(&control->failed, 1);
    atomic_fetch_add(&control->failures[kind][call], 1);
    int last = control->error || control->kills;
    if ((call == READ || call == WRITE) && control->is_short && (number == control->first || !last)) return HALF;
    if (control->kills) die();
    return control->error ? FAIL : PASS;
}

static enum verdict verdict(const char *path, enum call call) { return verdict_of(kind_of(path), call); }

/* Something is sent, if this is a connection. It never fails here. */
static void sends(int descriptor) {
    struct sockaddr_in peer = {0};
    socklen_t length = sizeof peer;
    if (CALL(SYS_getpeername, descriptor, &peer, &length, 0, 0, 0) != 0 || peer.sin_family != AF_INET) return;
    char name[16];
    snprintf(name, sizeof name, "port %d", ntohs(peer.sin_port));
    verdict_of(kind_named(name), SEND);
}

static long sent(long number, const long *a) {
    sends((int)a[0]);
    return again(number, a);
}

static void leave(struct page *page) {
    atomic_store(&page->state, UNUSED);
    atomic_fetch_sub(&control->kept, 1);
}

/* The same file, opened in another way. */
static long again_as(int descriptor, int how) {
    char name[32];
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    return CALL(SYS_openat, AT_FDCWD, name, how | O_CLOEXEC, 0, 0, 0);
}

/* Whether a force of this file may fail. */
static int forces_fail(const char *path) {
    int kind = kind_of(path);
    return kind >= 0 && atomic_load(&control->armed) && (control->calls >> SYNC & 1) && (control->files >> kind & 1) && control->error;
}

/* Keeps what the disk has of the pages that are about to be written; again once they are written, for a force may have failed in between. */
static void keep(int descriptor, const struct stat *status, const char *path, uint64_t from, uint64_t length, int about) {
    const char *below = path + folder_length;
    int begins = about && forces_fail(path) && strlen(below) < sizeof control->pages[0].path;
    if (!begins && atomic_load(&control->kept) == 0) return;
    long reader = -1;
    lock();
    for (uint64_t number = from / PAGE; number * PAGE < from + length; number++) {
        struct page *found = NULL, *room = NULL;
        for (uint64_t i = 0; i < TRIES && !found; i++) {
            struct page *page = &control->pages[(status->st_ino * 31 + number + i) % PAGES];
            if (atomic_load(&page->state) == UNUSED)
                room = room ? room : page;
            else if (page->inode == status->st_ino && page->number == number)
                found = page;
        }
        /* One that was lost is written again, as a whole. */
        if (found) atomic_store(&found->state, DIRTY);
        if (found || !begins || !room) continue;
        memset(room->bytes, 0, PAGE);
        if (reader < 0) reader = again_as(descriptor, O_RDONLY);
        if (CALL(SYS_pread64, reader, room->bytes, PAGE, number * PAGE, 0, 0) < 0) continue;
        strcpy(room->path, below);
        room->inode = status->st_ino;
        room->number = number;
        atomic_fetch_add(&control->kept, 1);
        atomic_store(&room->state, DIRTY);
    }
    unlock();
    if (reader >= 0) CALL(SYS_close, reader, 0, 0, 0, 0, 0);
}

/* A force of this file has ended. */
static void forced(uint64_t inode, int well) {
    if (atomic_load(&control->kept) == 0) return;
    lock();
    for (struct page *page = control->pages; page < control->pages + PAGES; page++) {
        if (atomic_load(&page->state) != DIRTY || page->inode != inode) continue;
        if (well)
            leave(page);
        else
            atomic_store(&page->state, LOST);
    }
    unlock();
}

/* The disk's page takes the place of the one in memory. */
static void drop(const struct page *page, int file, uint64_t size) {
    uint64_t at = page->number * PAGE;
    if (at < size) CALL(SYS_pwrite64, file, page->bytes, size - at < PAGE ? size - at : PAGE, at, 0, 0);
}

/* Pages of this file that are not dirty leave the memory. */
static void forget(int descriptor, const struct stat *status) {
    if (atomic_load(&control->kept) == 0) return;
    long file = again_as(descriptor, O_RDWR);
    if (file < 0) return;
    lock();
    for (struct page *page = control->pages; page < control->pages + PAGES; page++) {
        if (atomic_load(&page->state) != LOST || page->inode != status->st_ino) continue;
        drop(page, (int)file, (uint64_t)status->st_size);
        atomic_fetch_add(&control->dropped, 1);
        leave(page);
    }
    unlock();
    CALL(SYS_close, file, 0, 0, 0, 0, 0);
}

/* What was not written in time by an earlier process is gone. */
static void forget_all(void) {
    for (struct page *page = control->pages; page < control->pages + PAGES; page++) {
        struct stat status;
        char path[PATH_MAX];
        if (atomic_load(&page->state) == LOST) {
            strcpy(path, folder);
            strncat(path, page->path, sizeof path - folder_length - 1);
            int file = open(path, O_RDWR | O_CLOEXEC);
            if (file >= 0 && fstat(file, &status) == 0 && status.st_ino == page->inode) drop(page, file, (uint64_t)status.st_size);
            if (file >= 0) close(file);
        }
        atomic_store(&page->state, UNUSED);
    }
    atomic_store(&control->kept, 0);
}

/* The file of this name is another one from now on; or what of it is beyond this is no more. */
static void leave_all(const char *path, uint64_t from) {
    if (atomic_load(&control->kept) == 0) return;
    lock();
    for (struct page *page = control->pages; page < control->pages + PAGES; page++)
        if (atomic_load(&page->state) != UNUSED && page->number * PAGE >= from && strcmp(page->path, path + folder_length) == 0) leave(page);
    unlock();
}

static long on_path(long number, const long *a, int at, const char *name, enum call call) {
    char path[PATH_MAX];
    if (!resolve(at, name, path)) return again(number, a);
    if (verdict(path, call) == FAIL) return -(long)control->error;
    if (call != OPEN) leave_all(path, 0);
    return again(number, a);
}

static long opened(long number, const long *a, int at, const char *name, int flags) {
    struct stat before;
    char path[PATH_MAX];
    int creates = (flags & O_CREAT) && fstatat(at, name, &before, 0) != 0;
    long result = on_path(number, a, at, name, creates ? CREATE : OPEN);
    if (result >= 0 && (flags & O_TRUNC) && resolve(at, name, path)) leave_all(path, 0);
    return result;
}

static long on_descriptor(long number, const long *a, int descriptor, enum call call) {
    struct stat status;
    char path[PATH_MAX];
    if (!is_ours(descriptor, &status, path)) return again(number, a);
    int fails = verdict(path, call) == FAIL;
    long result = fails ? -(long)control->error : again(number, a);
    if (call == SYNC) forced(status.st_ino, result >= 0);
    if (call == RESIZE && number == SYS_ftruncate && result >= 0) leave_all(path, (uint64_t)a[1]);
    return result;
}

/* Where a call begins to write. */
static uint64_t place(long number, const long *a, const struct stat *status) {
    if (number == SYS_pwrite64 || number == SYS_pwritev) return (uint64_t)a[3];
    if (CALL(SYS_fcntl, a[0], F_GETFL, 0, 0, 0, 0) & O_APPEND) return (uint64_t)status->st_size;
    return (uint64_t)CALL(SYS_lseek, a[0], 0, SEEK_CUR, 0, 0, 0);
}

/* Pieces in memory. One that is cut short moves half of the first. */
static long moved_pieces(long number, const long *a, const struct iovec *pieces, int count, enum call call) {
    struct stat status;
    char path[PATH_MAX];
    if (!is_ours((int)a[0], &status, path)) {
        if (call == WRITE && S_ISSOCK(status.st_mode)) sends((int)a[0]);
        return again(number, a);
    }
    enum verdict said = verdict(path, call);
    if (said == FAIL) return -(long)control->error;
    uint64_t from = place(number, a, &status), length = 0;
    for (int i = 0; i < count; i++) length += pieces[i].iov_len;
    if (call == WRITE) keep((int)a[0], &status, path, from, length, 1);
    long result;
    if (said == PASS) {
        result = again(number, a);
    } else if ((long)pieces == a[1]) {
        struct iovec half = {pieces->iov_base, pieces->iov_len > 1 ? pieces->iov_len / 2 : pieces->iov_len};
        result = CALL(number, a[0], &half, 1, a[3], a[4], a[5]);
    } else {
        long half[6] = {a[0], a[1], a[2] > 1 ? a[2] / 2 : a[2], a[3], a[4], a[5]};
        result = again(number, half);
    }
    if (call == WRITE) keep((int)a[0], &status, path, from, length, 0);
    return result;
}

/* The third argument is how many bytes. */
static long moved(long number, const long *a, enum call call) {
    struct iovec piece = {(void *)a[1], (size_t)a[2]};
    return moved_pieces(number, a, &piece, 1, call);
}

static long shadowed(long number, const long *a) {
    switch (number) {
    case SYS_read:
    case SYS_pread64: return moved(number, a, READ);
    case SYS_write:
    case SYS_pwrite64: return moved(number, a, WRITE);
    case SYS_readv:
    case SYS_preadv: return moved_pieces(number, a, (const struct iovec *)a[1], (int)a[2], READ);
    case SYS_writev:
    case SYS_pwritev: return moved_pieces(number, a, (const struct iovec *)a[1], (int)a[2], WRITE);
    case SYS_sendto:
    case SYS_sendmsg:
    case SYS_sendmmsg: return sent(number, a);
    case SYS_getdents64: return on_descriptor(number, a, (int)a[0], READ);
    case SYS_ftruncate:
    case SYS_fallocate: return on_descriptor(number, a, (int)a[0], RESIZE);
    case SYS_fsync:
    case SYS_fdatasync:
    case SYS_sync_file_range: return on_descriptor(number, a, (int)a[0], SYNC);
    case SYS_fadvise64: {
        struct stat status;
        char path[PATH_MAX];
        long result = again(number, a);
        if (result == 0 && a[3] == POSIX_FADV_DONTNEED && is_ours((int)a[0], &status, path)) forget((int)a[0], &status);
        return result;
    }
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
    SYS_getdents64, SYS_ftruncate, SYS_fallocate,     SYS_fsync,    SYS_fdatasync, SYS_sync_file_range, SYS_mmap,    SYS_openat,   SYS_fadvise64,
    SYS_renameat2, SYS_linkat,   SYS_unlinkat,        SYS_mkdirat,  SYS_truncate, SYS_preadv2,   SYS_pwritev2,       SYS_openat2,
    SYS_io_uring_setup, SYS_io_setup, SYS_copy_file_range, SYS_sendto,    SYS_sendmsg,   SYS_sendmmsg,
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
    forget_all();
    install(filtered, sizeof filtered / sizeof filtered[0]);
}
