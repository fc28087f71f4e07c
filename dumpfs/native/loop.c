/* See loop.h.
 *
 * Sources: Linux include/uapi/linux/fuse.h (requests and answers), fs/fuse/dev.c (errors of read and write).
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include "loop.h"

#include <errno.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* After a small read its reader mostly comes again. Looking out for it this long spares two sleeps and wake-ups of a
 * processor, which on a virtual machine take longer than the work; `fuse/eventloop.py` has the measurements. */
#define LINGER_NS 200000
#define SMALL_READ (64 << 10)
/* Requests that may be answered while other tasks of the worker wait for their turn. */
#define MOST_POLITELY 16

int loop_prepare(struct loop *loop, size_t room)
{
	loop->room = room;
	loop->request = malloc(room);
	loop->answer = malloc(MOST_BYTES);
	return loop->request && loop->answer ? 0 : -1;
}

void loop_release(struct loop *loop)
{
	size_t i;

	for (i = 0; i < loop->count; ++i)
		free(loop->files[i].extents);
	free(loop->files);
	free(loop->request);
	free(loop->answer);
	loop->files = NULL;
	loop->count = 0;
	loop->request = loop->answer = NULL;
}

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * (int64_t)1000000000 + time.tv_nsec;
}

/* Return when a request has come, or after a while. */
static void look_around(int device)
{
	struct pollfd wanted = { .fd = device, .events = POLLIN };
	int64_t until;

	if (poll(&wanted, 1, 0))
		return;
	for (until = now() + LINGER_NS; now() < until;) {
		sched_yield(); /* the reader may be on this processor */
		if (poll(&wanted, 1, 0))
			return;
	}
}

static const struct file *find_file(const struct loop *loop, uint64_t handle)
{
	size_t i;

	for (i = 0; i < loop->count; ++i)
		if (loop->files[i].handle == handle)
			return &loop->files[i];
	return NULL;
}

/* The extent that holds a range of a file entirely, or NULL. */
static const struct extent *find_extent(const struct file *file, uint64_t offset, uint64_t size)
{
	size_t low = 0, high = file->count;
	const struct extent *extent;

	while (low < high) { /* the last that begins at or before `offset` */
		size_t middle = low + (high - low) / 2;

		if (file->extents[middle].offset <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low)
		return NULL;
	extent = &file->extents[low - 1];
	return offset - extent->offset < extent->size && size <= extent->size - (offset - extent->offset) ? extent : NULL;
}

/* Answer a request if it is a read of memory that is in order: 1, or 0. */
static int answer(struct loop *loop, size_t length)
{
	const struct fuse_in_header *header = (const void *)loop->request;
	const struct fuse_read_in *read = (const void *)(header + 1);
	struct fuse_out_header reply = { 0 };
	const struct extent *extent;
	const struct file *file;
	struct iovec parts[2];
	const void *data;

	if (length < sizeof *header + sizeof *read || header->opcode != FUSE_READ || !read->size ||
	    read->size > MOST_BYTES)
		return 0;
	file = find_file(loop, read->fh);
	extent = file ? find_extent(file, read->offset, read->size) : NULL;
	data = extent ? pages_read(file->pages, extent->address + (read->offset - extent->offset), read->size, loop->answer)
		      : NULL;
	if (!data)
		return 0;
	reply.len = sizeof reply + read->size;
	reply.unique = header->unique;
	parts[0].iov_base = &reply;
	parts[0].iov_len = sizeof reply;
	parts[1].iov_base = (void *)data;
	parts[1].iov_len = read->size;
	/* ENOENT: nobody waits for it any more, or another worker was asked the same and was quicker. */
	while (writev(loop->device, parts, 2) < 0)
		if (errno == ENOENT)
			break;
		else if (errno != EINTR)
			return 0;
	++*loop->reads;
	*loop->bytes += read->size;
	*loop->hits += file->pages->hits;
	*loop->misses += file->pages->misses;
	file->pages->hits = file->pages->misses = 0;
	loop->linger = read->size <= SMALL_READ;
	return 1;
}

long loop_next(struct loop *loop, int polite)
{
	struct pollfd wanted = { .fd = loop->device, .events = POLLIN };
	int answered = 0;

	for (;;) {
		ssize_t got;

		if (polite) { /* a request may be gone when we come: a timer interrupts us then */
			if (answered++ == MOST_POLITELY || !poll(&wanted, 1, 0))
				return 0;
		} else if (loop->linger) {
			loop->linger = 0;
			look_around(loop->device);
		}
		got = read(loop->device, loop->request, loop->room);
		if (got < 0) {
			if (errno == ENOENT) /* taken back before it was read */
				continue;
			return errno == EINTR || errno == EAGAIN ? 0 : -errno;
		}
		if (!answer(loop, got))
			return got;
	}
}
