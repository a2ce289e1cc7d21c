/* A mirror in C: how far a machine lets any go that answers when the other host has the data.
 *
 *     limit SOURCE MOUNTPOINT ADDRESS PORT      serve SOURCE at MOUNTPOINT, and send each write
 *     limit --serve COPIES ADDRESS PORT         write what comes to a copy, and answer
 *
 * One thread, blocking calls, TCP, no TLS. Nothing else: no order between hosts, no names or times on the
 * other one, no checksum, nothing to recover by. Built by the bench where gcc and the headers of libfuse are.
 */
#define FUSE_USE_VERSION 35
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

struct header {
    uint64_t file, offset, length;
};

static int peer = -1, source = -1;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static const char *below(const char *path) { return path[1] ? path + 1 : "."; }
static int result(int returned) { return returned < 0 ? -errno : 0; }
static int handle(struct fuse_file_info *info) { return (int)info->fh; }

static void receive_whole(int from, void *buffer, size_t size) {
    if (recv(from, buffer, size, MSG_WAITALL) != (ssize_t)size)
        die("the other process has ended");
}

static int get_attributes(const char *path, struct stat *found, struct fuse_file_info *info) {
    return result(info ? fstat(handle(info), found) : fstatat(source, below(path), found, AT_SYMLINK_NOFOLLOW));
}

static int make_directory(const char *path, mode_t mode) { return result(mkdirat(source, below(path), mode)); }
static int remove_directory(const char *path) { return result(unlinkat(source, below(path), AT_REMOVEDIR)); }
static int remove_file(const char *path) { return result(unlinkat(source, below(path), 0)); }

static int rename_file(const char *from, const char *to, unsigned flags) {
    return result(renameat2(source, below(from), source, below(to), flags));
}

static int cut(const char *path, off_t size, struct fuse_file_info *info) {
    if (info)
        return result(ftruncate(handle(info), size));
    int file = openat(source, below(path), O_WRONLY);
    if (file < 0)
        return -errno;
    int done = result(ftruncate(file, size));
    close(file);
    return done;
}

static int set_times(const char *path, const struct timespec times[2], struct fuse_file_info *info) {
    return result(info ? futimens(handle(info), times)
                       : utimensat(source, below(path), times, AT_SYMLINK_NOFOLLOW));
}

static int set_mode(const char *path, mode_t mode, struct fuse_file_info *info) {
    return result(info ? fchmod(handle(info), mode) : fchmodat(source, below(path), mode, 0));
}

static int opened(int file, struct fuse_file_info *info) {
    if (file < 0)
        return -errno;
    info->fh = (uint64_t)file;
    info->direct_io = 1; /* as fusemirror's mounts do */
    return 0;
}

static int open_file(const char *path, struct fuse_file_info *info) {
    return opened(openat(source, below(path), info->flags & ~O_NOFOLLOW), info);
}

static int create_file(const char *path, mode_t mode, struct fuse_file_info *info) {
    return opened(openat(source, below(path), info->flags | O_CREAT, mode), info);
}

static int close_file(const char *path, struct fuse_file_info *info) {
    (void)path;
    return result(close(handle(info)));
}

static int read_file(const char *path, char *buffer, size_t size, off_t offset, struct fuse_file_info *info) {
    (void)path;
    ssize_t got = pread(handle(info), buffer, size, offset);
    return got < 0 ? -errno : (int)got;
}

static int write_file(const char *path, const char *data, size_t size, off_t offset, struct fuse_file_info *info) {
    (void)path;
    struct stat found;
    if (fstat(handle(info), &found) < 0)
        return -errno;
    struct header header = {found.st_ino, (uint64_t)offset, size};
    struct iovec parts[2] = {{&header, sizeof header}, {(void *)data, size}};
    ssize_t sent = writev(peer, parts, 2);
    if (sent < (ssize_t)sizeof header)
        die("send");
    for (size_t done = (size_t)sent - sizeof header; done < size; done += (size_t)sent)
        if ((sent = send(peer, data + done, size - done, MSG_NOSIGNAL)) < 0)
            die("send");
    ssize_t written = pwrite(handle(info), data, size, offset); /* while the other host is at work */
    int reason = errno;
    char answer;
    receive_whole(peer, &answer, 1);
    return written < 0 ? -reason : (int)written;
}

static int sync_file(const char *path, int data_only, struct fuse_file_info *info) {
    (void)path;
    return result(data_only ? fdatasync(handle(info)) : fsync(handle(info)));
}

static int read_directory(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset,
                          struct fuse_file_info *info, enum fuse_readdir_flags flags) {
    (void)offset, (void)info, (void)flags;
    int file = openat(source, below(path), O_RDONLY | O_DIRECTORY);
    DIR *directory = file < 0 ? NULL : fdopendir(file);
    if (!directory)
        return -errno;
    for (struct dirent *entry; (entry = readdir(directory));)
        fill(buffer, entry->d_name, NULL, 0, 0);
    closedir(directory);
    return 0;
}

static int count_space(const char *path, struct statvfs *found) {
    (void)path;
    return result(fstatvfs(source, found));
}

static void *configure(struct fuse_conn_info *connection, struct fuse_config *config) {
    (void)connection;
    config->entry_timeout = config->attr_timeout = config->negative_timeout = 0;
    config->nullpath_ok = 1;
    return NULL;
}

static const struct fuse_operations operations = {
    .init = configure,        .getattr = get_attributes, .mkdir = make_directory, .rmdir = remove_directory,
    .unlink = remove_file,    .rename = rename_file,     .truncate = cut,         .utimens = set_times,
    .chmod = set_mode,        .open = open_file,         .create = create_file,   .release = close_file,
    .read = read_file,        .write = write_file,       .fsync = sync_file,      .readdir = read_directory,
    .statfs = count_space,
};

static struct sockaddr_in at(const char *address, const char *port) {
    struct sockaddr_in found = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    if (inet_pton(AF_INET, address, &found.sin_addr) != 1)
        die(address);
    return found;
}

static int connected(struct sockaddr_in address) {
    int on = 1, made = socket(AF_INET, SOCK_STREAM, 0);
    if (made < 0 || connect(made, (struct sockaddr *)&address, sizeof address) < 0)
        die("connect");
    setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return made;
}

static int serve(const char *copies, struct sockaddr_in address) {
    int on = 1, listening = socket(AF_INET, SOCK_STREAM, 0), directory = open(copies, O_RDONLY | O_DIRECTORY);
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (directory < 0 || bind(listening, (struct sockaddr *)&address, sizeof address) < 0 || listen(listening, 1) < 0)
        die("listen");
    int from = accept(listening, NULL, NULL), file = -1;
    setsockopt(from, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    uint64_t of = 0;
    size_t room = 0;
    char *data = NULL;
    for (struct header header; recv(from, &header, sizeof header, MSG_WAITALL) == sizeof header;) {
        if (header.length > room && !(data = realloc(data, room = header.length)))
            die("memory");
        receive_whole(from, data, header.length);
        if (file < 0 || header.file != of) { /* one descriptor is enough: few files are written in turn */
            char name[32];
            snprintf(name, sizeof name, "%llu", (unsigned long long)header.file);
            if (file >= 0)
                close(file);
            if ((file = openat(directory, name, O_WRONLY | O_CREAT, 0600)) < 0)
                die(name);
            of = header.file;
        }
        if (pwrite(file, data, header.length, (off_t)header.offset) < 0 || send(from, ".", 1, MSG_NOSIGNAL) < 0)
            die("write");
    }
    return 0;
}

int main(int count, char **words) {
    umask(0);
    if (count != 5)
        return 2;
    if (!strcmp(words[1], "--serve"))
        return serve(words[2], at(words[3], words[4]));
    peer = connected(at(words[3], words[4]));
    if ((source = open(words[1], O_RDONLY | O_DIRECTORY)) < 0)
        die(words[1]);
    char *arguments[] = {words[0], words[2], "-f", "-s", "-o", "allow_other,default_permissions", NULL};
    return fuse_main(6, arguments, &operations, NULL);
}
