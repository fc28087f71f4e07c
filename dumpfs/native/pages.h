/* Pages of one plain kdump-compressed file: found by its bitmap and descriptors, read and decoded.
 *
 * Only what is in order is done here. Whatever is not (a page that is lost or damaged, a file that became shorter, a
 * codec without library) is refused without a reason, and the caller has the Python code find out and say what is
 * wrong.
 */
#ifndef DUMPFS_PAGES_H
#define DUMPFS_PAGES_H

#include <stddef.h>
#include <stdint.h>

#define CHUNK_SHIFT 12 /* pages of one entry of `ranks` */
#define CHUNK_PAGES (1u << CHUNK_SHIFT)
#define CHUNK_BYTES (CHUNK_PAGES / 8)

/* One piece of a bitmap, with the members before each of its words. */
struct chunk {
	uint64_t number; /* plus 1; 0: empty */
	uint64_t words[CHUNK_BYTES / 8];
	uint16_t before[CHUNK_BYTES / 8];
};

/* Neighbouring descriptors, for reads of single pages. */
#define DESCRIPTOR_BYTES 24
#define GROUP_SHIFT 6
#define GROUP_BYTES (DESCRIPTOR_BYTES << GROUP_SHIFT)

struct descriptor {
	uint64_t offset;
	uint32_t size, flags;
};

struct group {
	uint64_t number; /* plus 1; 0: empty */
	uint8_t bytes[GROUP_BYTES];
};

struct pages {
	int fd;
	uint64_t bitmap; /* offset of the bitmap that says which pages are stored */
	uint64_t stop; /* one past the last page that it covers */
	const uint64_t *ranks; /* by chunk: members before it */
	size_t nranks;
	uint64_t table; /* offset of the descriptors, one for each member */
	uint64_t count; /* of them */
	size_t page_size;
	unsigned shift; /* page_size is 1 << shift */
	int zeros; /* whether memory that is not stored reads as zeros */

	struct chunk *chunks; /* of the bitmap, by number modulo their count */
	struct group *groups; /* of descriptors, by number modulo their count */
	uint8_t *slots; /* decoded pages, by number modulo their count */
	uint64_t *tags; /* which page a slot holds, plus 1; 0: none */
	size_t nslots; /* a power of two, or 0 */
	uint64_t hits, misses;

	uint8_t *stored; /* stored bytes, read at once */
	uint8_t *descriptors;
	struct descriptor shared; /* of a page whose data others share; offset 0: none yet */
	uint8_t *shared_page; /* decoded */
};

/* Make room for what reading needs, in a `pages` whose fields up to `zeros` are set: 0, or -1 without memory. */
int pages_prepare(struct pages *pages, size_t cache_bytes);
void pages_release(struct pages *pages);

/* Bytes of decoded pages that are kept. */
size_t pages_used(const struct pages *pages);

/* No file, and no memory, reaches there: sums of less than this do not wrap. */
#define LAST_OFFSET ((uint64_t)1 << 62)

/* Most bytes that `pages_read` takes. */
#define MOST_BYTES ((size_t)1 << 20)

/* `size` bytes of physical memory at `address`: where they are, in `out` or in the cache of pages until the next call;
 * NULL when they cannot be had here. `out` has room for `size` bytes. */
const void *pages_read(struct pages *pages, uint64_t address, size_t size, uint8_t *out);

#endif
