/* A FUSE file system of one file, whose reads are answered with the same bytes of another file: the ceiling for dumpfs.
 *
 * usage: passthrough FILE MOUNTPOINT
 * The file appears as MOUNTPOINT/file. No decoding, no lookup of pages, no interpreter: a read costs what the kernel,
 * libfuse and one copy from FILE's page cache cost. As many threads as requests, each with its own descriptor of the
 * FUSE device (clone_fd); page cache kept and long timeouts, as dumpfs has them. Ends when it is unmounted.
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 314
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_INODE 2
#define TIMEOUT 86400.0

static int source;
static struct stat attributes;

static int describe(fuse_ino_t ino, struct stat *st)
{
	memset(st, 0, sizeof *st);
	st->st_ino = ino;
	if (ino == FUSE_ROOT_ID) {
		st->st_mode = S_IFDIR | 0555;
		st->st_nlink = 2;
		return 0;
	}
	if (ino != FILE_INODE)
		return ENOENT;
	st->st_mode = S_IFREG | 0444;
	st->st_nlink = 1;
	st->st_size = attributes.st_size;
	st->st_blocks = attributes.st_blocks;
	return 0;
}

static void look_up(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry = { .ino = FILE_INODE, .attr_timeout = TIMEOUT, .entry_timeout = TIMEOUT };

	if (parent != FUSE_ROOT_ID || strcmp(name, "file")) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	describe(FILE_INODE, &entry.attr);
	fuse_reply_entry(req, &entry);
}

static void get_attributes(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st;
	int error = describe(ino, &st);

	(void)fi;
	if (error)
		fuse_reply_err(req, error);
	else
		fuse_reply_attr(req, &st, TIMEOUT);
}

static void open_file(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	if (ino != FILE_INODE) {
		fuse_reply_err(req, EISDIR);
		return;
	}
	fi->keep_cache = 1;
	fuse_reply_open(req, fi);
}

static void read_file(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
	static __thread char *buffer;
	static __thread size_t room;
	ssize_t got;

	(void)ino;
	(void)fi;
	if (room < size) {
		free(buffer);
		buffer = malloc(size);
		room = buffer ? size : 0;
	}
	got = buffer ? pread(source, buffer, size, offset) : -1;
	if (got < 0)
		fuse_reply_err(req, buffer ? errno : ENOMEM);
	else
		fuse_reply_buf(req, buffer, got);
}

static const struct fuse_lowlevel_ops operations = {
	.lookup = look_up,
	.getattr = get_attributes,
	.open = open_file,
	.read = read_file,
};

int main(int argc, char **argv)
{
	char *words[] = { argv[0], "-o", "ro,fsname=passthrough,subtype=bench", NULL };
	struct fuse_args args = FUSE_ARGS_INIT(3, words);
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	struct fuse_session *session;
	int failed;

	if (argc != 3 || (source = open(argv[1], O_RDONLY)) < 0 || fstat(source, &attributes)) {
		fprintf(stderr, "usage: passthrough FILE MOUNTPOINT\n");
		return 2;
	}
	fuse_loop_cfg_set_clone_fd(config, 1);
	session = fuse_session_new(&args, &operations, sizeof operations, NULL);
	if (!session || fuse_set_signal_handlers(session) || fuse_session_mount(session, argv[2]))
		return 1;
	failed = fuse_session_loop_mt(session, config);
	fuse_session_unmount(session);
	fuse_remove_signal_handlers(session);
	fuse_session_destroy(session);
	fuse_loop_cfg_destroy(config);
	return failed != 0;
}
