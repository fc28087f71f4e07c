/* The loop of a mount's worker: takes requests from its FUSE device and answers reads of memory by itself.
 *
 * Everything else (other requests, reads of other files, pages that are not in order) goes to the caller.
 */
#ifndef DUMPFS_LOOP_H
#define DUMPFS_LOOP_H

#include "pages.h"

struct extent {
	uint64_t offset, size; /* in the file */
	uint64_t address; /* physical, of its first byte */
};

/* A file that shows physical memory, entirely or in parts. */
struct file {
	uint64_t handle;
	struct pages *pages;
	struct extent *extents; /* ascending */
	size_t count;
};

struct loop {
	int device;
	int linger; /* whether to look around before the next wait */
	struct file *files;
	size_t count; /* of files */
	uint8_t *request, *answer;
	size_t room; /* for a request */
	volatile uint64_t *reads, *bytes, *hits, *misses; /* where they are counted */
};

int loop_prepare(struct loop *loop, size_t room);
void loop_release(struct loop *loop);

/* Answer reads until something else comes, and return its bytes, which are in `request`; 0 at a signal, or -errno.
 * `polite`: return 0 also when nothing is there to be answered, and after some answers. */
long loop_next(struct loop *loop, int polite);

#endif
