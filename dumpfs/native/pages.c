/* See pages.h.
 *
 * Everything that is read from the dump may be anything: a descriptor is used only when its flags, size and offset are
 * in order, and a codec never writes past a page. The dump is read by pread(2), not through a mapping, which would end
 * the process with SIGBUS where a disk fails or a file became shorter.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include "pages.h"
#include "codecs.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNKS 128 /* kept of the bitmap: the descriptors' numbers for 2 GiB of memory, in 83 KB */
#define GROUPS 8192 /* kept of the descriptors: those of 2 GiB of stored pages, in 13 MB when all are used */
_Static_assert(sizeof(off_t) == 8, "offsets of large files");


int pages_prepare(struct pages *pages, size_t cache_bytes)
{
	size_t most = (MOST_BYTES >> pages->shift) + 2; /* pages of a request that begins and ends inside one */

	for (pages->nslots = 1; pages->nslots * 2 * pages->page_size <= cache_bytes; pages->nslots *= 2)
		;
	pages->chunks = calloc(CHUNKS, sizeof *pages->chunks);
	pages->groups = calloc(GROUPS, sizeof *pages->groups); /* memory that is not touched costs nothing */
	pages->slots = malloc(pages->nslots * pages->page_size);
	pages->tags = calloc(pages->nslots, sizeof *pages->tags);
	pages->stored = malloc(most * pages->page_size);
	pages->descriptors = malloc(most * DESCRIPTOR_BYTES);
	pages->shared_page = malloc(pages->page_size);
	if (!pages->chunks || !pages->groups || !pages->slots || !pages->tags || !pages->stored ||
	    !pages->descriptors || !pages->shared_page)
		return -1;
	return 0;
}

void pages_release(struct pages *pages)
{
	free(pages->chunks);
	free(pages->groups);
	free(pages->slots);
	free(pages->tags);
	free(pages->stored);
	free(pages->descriptors);
	free(pages->shared_page);
	pages->chunks = NULL;
	pages->groups = NULL;
	pages->slots = pages->stored = pages->descriptors = pages->shared_page = NULL;
	pages->tags = NULL;
}

size_t pages_used(const struct pages *pages)
{
	size_t used = 0, i;

	for (i = 0; i < pages->nslots; ++i)
		used += pages->tags[i] ? pages->page_size : 0;
	return used;
}

/* All of `size` bytes at `offset`: 0, or -1. */
static int read_all(const struct pages *pages, void *to, size_t size, uint64_t offset)
{
	char *at = to;

	if (offset > LAST_OFFSET)
		return -1;
	while (size) {
		ssize_t got = pread(pages->fd, at, size, offset);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return -1;
		at += got;
		offset += got;
		size -= got;
	}
	return 0;
}

/* -- the bitmap -------------------------------------------------------------------------------------------------- */

static const struct chunk *find_chunk(struct pages *pages, uint64_t number)
{
	struct chunk *chunk = &pages->chunks[number % CHUNKS];
	uint64_t first = number << CHUNK_SHIFT;
	size_t size, i;
	uint16_t before = 0;

	if (chunk->number == number + 1)
		return chunk;
	if (number >= pages->nranks || first >= pages->stop)
		return NULL;
	size = pages->stop - first < CHUNK_PAGES ? (pages->stop - first + 7) / 8 : CHUNK_BYTES;
	chunk->number = 0;
	memset(chunk->words, 0, sizeof chunk->words);
	if (read_all(pages, chunk->words, size, pages->bitmap + number * CHUNK_BYTES))
		return NULL;
	for (i = 0; i < CHUNK_BYTES / 8; ++i) {
		chunk->words[i] = le64toh(chunk->words[i]); /* bits count from the least one of each byte */
		chunk->before[i] = before;
		before += __builtin_popcountll(chunk->words[i]);
	}
	chunk->number = number + 1;
	return chunk;
}

/* Whether a page is stored: 1 with the number of its descriptor, 0, or -1 when it cannot be told. */
static int find_page(struct pages *pages, uint64_t page, uint64_t *rank)
{
	const struct chunk *chunk;
	unsigned bit = page % 64;
	size_t word = page % CHUNK_PAGES / 64;

	if (page >= pages->stop)
		return 0;
	chunk = find_chunk(pages, page >> CHUNK_SHIFT);
	if (!chunk)
		return -1;
	if (!(chunk->words[word] >> bit & 1))
		return 0;
	*rank = pages->ranks[page >> CHUNK_SHIFT] + chunk->before[word] +
		__builtin_popcountll(chunk->words[word] & (((uint64_t)1 << bit) - 1));
	return 1;
}

/* -- descriptors and data ---------------------------------------------------------------------------------------- */

/* `count` descriptors from number `first` on into pages->descriptors: 0, or -1. */
static int read_descriptors(const struct pages *pages, uint64_t first, size_t count)
{
	if (first > pages->count || count > pages->count - first)
		return -1;
	return read_all(pages, pages->descriptors, count * DESCRIPTOR_BYTES, pages->table + first * DESCRIPTOR_BYTES);
}

/* What the bytes of a descriptor say: 0, or -1 when it is not in order. */
static int take_descriptor(const struct pages *pages, const uint8_t *at, struct descriptor *to)
{
	memcpy(&to->offset, at, 8);
	memcpy(&to->size, at + 8, 4);
	memcpy(&to->flags, at + 12, 4);
	to->offset = le64toh(to->offset);
	to->size = le32toh(to->size);
	to->flags = le32toh(to->flags);
	if (!to->offset || to->offset > LAST_OFFSET || !to->size || to->size > pages->page_size)
		return -1;
	return to->flags || to->size == pages->page_size ? 0 : -1;
}

/* One of those that were read: 0, or -1 when it is not in order. */
static int get_descriptor(const struct pages *pages, size_t index, struct descriptor *to)
{
	return take_descriptor(pages, pages->descriptors + index * DESCRIPTOR_BYTES, to);
}

/* Descriptor number `index`: 0, or -1 when it is not to be had or not in order. Random reads come back to the same
 * groups, and so need not ask for each. */
static int find_descriptor(const struct pages *pages, uint64_t index, struct descriptor *to)
{
	struct group *group = &pages->groups[(index >> GROUP_SHIFT) % GROUPS];
	uint64_t number = index >> GROUP_SHIFT, first = number << GROUP_SHIFT;

	if (index >= pages->count)
		return -1;
	if (group->number != number + 1) {
		size_t size = pages->count - first < 1 << GROUP_SHIFT ? (pages->count - first) * DESCRIPTOR_BYTES : GROUP_BYTES;

		group->number = 0;
		if (read_all(pages, group->bytes, size, pages->table + first * DESCRIPTOR_BYTES))
			return -1;
		group->number = number + 1;
	}
	return take_descriptor(pages, group->bytes + (index - first) * DESCRIPTOR_BYTES, to);
}

static int decode(const struct pages *pages, const struct descriptor *descriptor, const void *stored, void *to)
{
	const struct codec *codec;

	if (!descriptor->flags) {
		memcpy(to, stored, pages->page_size);
		return 0;
	}
	codec = codec_find(descriptor->flags);
	return codec ? codec->decode(stored, descriptor->size, to, pages->page_size) : -1;
}

/* A page, from the cache or into it; NULL when it cannot be had. */
static const uint8_t *read_page(struct pages *pages, uint64_t page)
{
	size_t slot = page & (pages->nslots - 1);
	uint8_t *to = pages->slots + slot * pages->page_size;
	struct descriptor descriptor;
	uint64_t rank;
	int found;

	if (pages->tags[slot] == page + 1) {
		++pages->hits;
		return to;
	}
	++pages->misses;
	pages->tags[slot] = 0;
	found = find_page(pages, page, &rank);
	if (!found && pages->zeros) {
		memset(to, 0, pages->page_size);
	} else {
		if (found != 1 || find_descriptor(pages, rank, &descriptor) ||
		    read_all(pages, pages->stored, descriptor.size, descriptor.offset) ||
		    decode(pages, &descriptor, pages->stored, to))
			return NULL;
	}
	pages->tags[slot] = page + 1;
	return to;
}

static int is_shared(const struct pages *pages, const struct descriptor *one)
{
	const struct descriptor *shared = &pages->shared;

	return one->offset == shared->offset && one->size == shared->size && one->flags == shared->flags;
}

/* Keep a page whose data others share: 0, or -1. */
static int keep_shared(struct pages *pages, const struct descriptor *one)
{
	pages->shared.offset = 0; /* as if none were kept */
	if (read_all(pages, pages->stored, one->size, one->offset) || decode(pages, one, pages->stored, pages->shared_page))
		return -1;
	pages->shared = *one;
	return 0;
}

/* `count` stored pages, whose descriptors have been read, to `out`: 0, or -1.
 *
 * Data that lie one behind the other in the file are read at once. Between them there may be pages whose data lie
 * before: zero pages share one copy at the start of all data. */
static int decode_pages(struct pages *pages, size_t count, uint8_t *out)
{
	size_t done = 0;

	while (done < count) {
		size_t bytes = 0, inside = 0, stop;
		struct descriptor one;
		uint64_t start = 0;
		int skipped = 0;

		for (stop = done; stop < count; ++stop) {
			if (get_descriptor(pages, stop, &one))
				return -1;
			if (is_shared(pages, &one)) {
				skipped = 1;
				continue;
			}
			if (!bytes)
				start = one.offset;
			if (bytes && one.offset < start && !skipped) { /* never two that are skipped in one run */
				if (keep_shared(pages, &one))
					return -1;
				skipped = 1;
				continue;
			}
			if (one.offset != start + bytes)
				break;
			bytes += one.size; /* at most a page each, for which there is room */
		}
		if (bytes && read_all(pages, pages->stored, bytes, start))
			return -1;
		for (; done < stop; ++done) {
			uint8_t *to = out + done * pages->page_size;

			if (get_descriptor(pages, done, &one))
				return -1;
			if (is_shared(pages, &one)) {
				memcpy(to, pages->shared_page, pages->page_size);
				continue;
			}
			if (decode(pages, &one, pages->stored + inside, to))
				return -1;
			inside += one.size;
		}
	}
	return 0;
}

/* `count` whole pages from `first` on to `out`: 0, or -1. */
static int read_pages(struct pages *pages, uint64_t first, size_t count, uint8_t *out)
{
	size_t done = 0;

	while (done < count) { /* a run of pages that are stored, whose descriptors are neighbours, or of such that are not */
		uint64_t rank = 0, other;
		size_t length = 1;
		int found = find_page(pages, first + done, &rank);

		if (found < 0 || (!found && !pages->zeros))
			return -1;
		while (done + length < count && find_page(pages, first + done + length, &other) == found)
			++length;
		if (!found) {
			memset(out + done * pages->page_size, 0, length * pages->page_size);
		} else {
			if (read_descriptors(pages, rank, length) ||
			    decode_pages(pages, length, out + done * pages->page_size))
				return -1;
		}
		done += length;
	}
	return 0;
}

const void *pages_read(struct pages *pages, uint64_t address, size_t size, uint8_t *out)
{
	uint64_t page = address >> pages->shift;
	size_t inside = address & (pages->page_size - 1), done = 0;
	const uint8_t *found;

	if (!size || size > MOST_BYTES || address > LAST_OFFSET)
		return NULL;
	if (inside + size <= pages->page_size) {
		found = read_page(pages, page);
		return found ? found + inside : NULL;
	}
	while (done < size) {
		size_t length = (size - done) >> pages->shift;

		if (!inside && length) {
			if (read_pages(pages, page, length, out + done))
				return NULL;
			page += length;
			length <<= pages->shift;
		} else { /* part of a page, at an end */
			found = read_page(pages, page++);
			if (!found)
				return NULL;
			length = pages->page_size - inside < size - done ? pages->page_size - inside : size - done;
			memcpy(out + done, found + inside, length);
			inside = 0;
		}
		done += length;
	}
	return out;
}
