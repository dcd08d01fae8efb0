/* What of a .pt file tells what it holds: its pickle, and where the bytes of its tensors lie. Nothing here needs Python,
   so that many files are read without the interpreter lock.

   The bytes come from files of others: every read is bounded by what was read. */

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define END 22
#define MEMBER 46
#define LOCAL 30
#define WHOLE (8 << 10) /* bytes up to which a file is read at once */
#define PIECE (4 << 10) /* bytes that are read at a time of others: a directory, or a pickle */
#define MOST_PICKLE (64 << 20)
#define MOST_DIRECTORY (16 << 20)

static uint32_t number(const uint8_t *from, int bytes) {
    uint32_t found = 0;
    for (int i = bytes - 1; i >= 0; i--) found = found << 8 | from[i];
    return found;
}

typedef struct {
    const char *name; /* in the directory */
    size_t name_size, local, size; /* of its header, which is before its bytes */
    uint32_t checksum;
} Member;

typedef struct {
    size_t start, size;
    uint8_t *bytes;
} Part;

typedef struct {
    int descriptor, failed;
    size_t size;
    Part parts[2]; /* that were read: the end, and what was looked at last */
} File;

typedef struct {
    size_t key, key_size; /* in `names` */
    size_t start, stop;
} Storage;

typedef struct {
    int64_t size, changed, inode; /* `changed` in nanoseconds */
    uint8_t *code; /* the pickle; NULL where the file is not one that is read here */
    size_t code_size;
    char *names;
    Storage *storages;
    size_t count;
} Head;

static int read_part(File *file, Part *part, size_t start, size_t size) {
    uint8_t *bytes = realloc(part->bytes, size);
    if (bytes == NULL) return 0;
    *part = (Part){start, 0, bytes};
    while (part->size < size) {
        ssize_t got = pread(file->descriptor, bytes + part->size, size - part->size, (off_t)(start + part->size));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return 0;
        part->size += (size_t)got;
    }
    return 1;
}

/* So many bytes of a file; NULL where it has not so many. They are there until other bytes are looked at. */
static const uint8_t *look(File *file, size_t at, size_t size) {
    if (at > file->size || file->size - at < size) return NULL;
    for (int i = 0; i < 2; i++) {
        Part *part = &file->parts[i];
        if (part->bytes && at >= part->start && at - part->start <= part->size && part->size - (at - part->start) >= size)
            return part->bytes + (at - part->start);
    }
    size_t more = file->size - at < PIECE ? file->size - at : PIECE;
    return read_part(file, &file->parts[1], at, size > more ? size : more) ? file->parts[1].bytes : NULL;
}

static int by_name(const void *left, const void *right) {
    const Member *a = left, *b = right;
    size_t least = a->name_size < b->name_size ? a->name_size : b->name_size;
    int order = memcmp(a->name, b->name, least);
    return order ? order : (a->name_size > b->name_size) - (a->name_size < b->name_size);
}

/* The members, in the order of their names; NULL where there are none, or the archive is one that is not read here. */
static Member *read_directory(File *file, size_t *count, size_t *offset) {
    size_t tail = file->size < PIECE ? file->size : PIECE;
    if (file->size < END || !read_part(file, &file->parts[0], file->size <= WHOLE ? 0 : file->size - tail,
                                       file->size <= WHOLE ? file->size : tail))
        return NULL;
    const uint8_t *end = look(file, file->size - END, END);
    *count = number(end + 10, 2), *offset = number(end + 16, 4);
    if (memcmp(end, "PK\5\6", 4) || number(end + 20, 2) || *count == 0xFFFF || *count == 0) return NULL;
    if (number(end + 12, 4) == 0xFFFFFFFF || *offset == 0xFFFFFFFF || *offset > file->size) return NULL;
    size_t size = file->size - *offset, at = 0;
    const uint8_t *directory = size > MOST_DIRECTORY ? NULL : look(file, *offset, size);
    /* It stays where it is, whatever is looked at after it. */
    if (directory != NULL && file->parts[1].bytes != NULL) {
        Part other = file->parts[0];
        file->parts[0] = file->parts[1], file->parts[1] = other;
    }
    Member *members = directory == NULL ? NULL : malloc(*count * sizeof *members);
    for (size_t i = 0; members != NULL && i < *count; i++) {
        const uint8_t *one = directory + at;
        size_t name = 0;
        int good = size - at >= MEMBER && !memcmp(one, "PK\1\2", 4);
        if (good) {
            uint32_t packed = number(one + 20, 4), local = number(one + 42, 4);
            name = number(one + 28, 2);
            good = !(number(one + 8, 2) & 1) && !number(one + 10, 2) && packed == number(one + 24, 4) &&
                   packed != 0xFFFFFFFF && local != 0xFFFFFFFF && size - at - MEMBER >= name;
            members[i] = (Member){(const char *)one + MEMBER, name, local, packed, number(one + 16, 4)};
        }
        if (good) {
            at += MEMBER + name + number(one + 30, 2) + number(one + 32, 2);
            good = at <= size;
        }
        if (!good) free(members), members = NULL;
    }
    if (members == NULL) return NULL;
    qsort(members, *count, sizeof *members, by_name);
    for (size_t i = 1; i < *count; i++)
        if (by_name(&members[i - 1], &members[i]) == 0) {
            free(members);
            return NULL;
        }
    return members;
}

/* Where the bytes of a member start; 0 where they cannot. */
static size_t start_of(File *file, const Member *member, size_t directory) {
    const uint8_t *head = look(file, member->local, LOCAL);
    if (head == NULL || memcmp(head, "PK\3\4", 4)) return 0;
    size_t start = member->local + LOCAL + number(head + 26, 2) + number(head + 28, 2);
    return start + member->size > directory ? 0 : start;
}

static int ends_with(const Member *member, size_t before, const char *end) {
    return member->name_size == before + strlen(end) && !memcmp(member->name + before, end, strlen(end));
}

/* The folder in the archive, by the one pickle in a folder that lies in no other; 0 where that is not clear. */
static size_t folder_size(const Member *members, size_t count, const Member **pickle) {
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        const char *slash = memchr(members[i].name, '/', members[i].name_size);
        size_t before = slash == NULL ? 0 : (size_t)(slash - members[i].name) + 1;
        if (!before || !ends_with(&members[i], before, "data.pkl")) continue;
        if (found) return 0;
        found = before, *pickle = &members[i];
    }
    return found;
}

static uint32_t checksum_table[256];

static void fill_checksum_table(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t left = i;
        for (int bit = 0; bit < 8; bit++) left = left & 1 ? left >> 1 ^ 0xEDB88320 : left >> 1;
        checksum_table[i] = left;
    }
}

static uint32_t checksum(const uint8_t *bytes, size_t size) {
    uint32_t found = 0xFFFFFFFF;
    for (size_t i = 0; i < size; i++) found = found >> 8 ^ checksum_table[(found ^ bytes[i]) & 0xFF];
    return ~found;
}

/* Fills a head from the members of the archive; 0 where the file is not one that is read here. */
static int read_members(File *file, const Member *members, size_t count, size_t directory, Head *head) {
    const Member *pickle = NULL;
    size_t folder = folder_size(members, count, &pickle), names = 0;
    const uint8_t *bytes = look(file, 0, 4);
    if (!folder || bytes == NULL || memcmp(bytes, "PK\3\4", 4)) return 0;
    head->storages = malloc(count * sizeof *head->storages);
    for (size_t i = 0; i < count; i++) names += members[i].name_size;
    head->names = malloc(names + 1);
    if (head->storages == NULL || head->names == NULL) return 0;
    names = 0;
    for (size_t i = 0; i < count; i++) {
        const Member *one = &members[i];
        if (one->name_size < folder || memcmp(one->name, pickle->name, folder)) continue;
        int is_order = ends_with(one, folder, "byteorder");
        int is_storage = one->name_size >= folder + 5 && !memcmp(one->name + folder, "data/", 5);
        if (!is_order && !is_storage) continue;
        size_t start = start_of(file, one, directory);
        if (!start) return 0;
        if (is_order) {
            bytes = one->size == 6 ? look(file, start, 6) : NULL;
            if (bytes == NULL || memcmp(bytes, "little", 6)) return 0;
            continue;
        }
        size_t key = one->name_size - folder - 5;
        head->storages[head->count++] = (Storage){names, key, start, start + one->size};
        memcpy(head->names + names, one->name + folder + 5, key);
        names += key;
    }
    size_t start = pickle->size > MOST_PICKLE ? 0 : start_of(file, pickle, directory);
    bytes = start ? look(file, start, pickle->size) : NULL;
    if (bytes == NULL || checksum(bytes, pickle->size) != pickle->checksum) return 0;
    head->code = malloc(pickle->size + 1);
    if (head->code == NULL) return 0;
    memcpy(head->code, bytes, pickle->size);
    head->code_size = pickle->size;
    return 1;
}

static void free_head(Head *head) {
    free(head->code);
    free(head->names);
    free(head->storages);
    *head = (Head){0};
}

static void take_stamp(const struct stat *status, Head *head) {
    head->size = (int64_t)status->st_size, head->inode = (int64_t)status->st_ino;
#ifdef __APPLE__
    head->changed = (int64_t)status->st_mtimespec.tv_sec * 1000000000 + status->st_mtimespec.tv_nsec;
#else
    head->changed = (int64_t)status->st_mtim.tv_sec * 1000000000 + status->st_mtim.tv_nsec;
#endif
}

/* The stamp of a file alone; its size is -1 where it is not there. */
static void read_stamp(const char *path, Head *head) {
    struct stat status;
    *head = (Head){.size = -1};
    if (stat(path, &status) == 0) take_stamp(&status, head);
}

/* What a file holds, as far as it can be told without the interpreter. */
static void read_head(const char *path, Head *head) {
    *head = (Head){0};
    File file = {.descriptor = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)};
    if (file.descriptor < 0) return;
    struct stat status;
    if (fstat(file.descriptor, &status) == 0 && S_ISREG(status.st_mode)) {
        file.size = (size_t)status.st_size;
        take_stamp(&status, head);
        size_t count, directory;
        Member *members = read_directory(&file, &count, &directory);
        if (members != NULL && !read_members(&file, members, count, directory, head)) free_head(head);
        free(members);
    }
    for (int i = 0; i < 2; i++) free(file.parts[i].bytes);
    close(file.descriptor);
}

/* A part of a file that has still the stamp of the head; 0 where it has not, or cannot be read. */
static int read_bytes(const char *path, const Head *stamp, size_t start, size_t size, void *to) {
    int descriptor = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (descriptor < 0) return 0;
    struct stat status;
    Head now = {0};
    size_t done = 0;
    if (fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode)) take_stamp(&status, &now);
    if (now.size == stamp->size && now.changed == stamp->changed && now.inode == stamp->inode)
        while (done < size) {
            ssize_t got = pread(descriptor, (char *)to + done, size - done, (off_t)(start + done));
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) break;
            done += (size_t)got;
        }
    close(descriptor);
    return size && done == size;
}
