/* Batches of pages in the form in which a kdump-compressed file stores them. */
#ifndef DUMPFS_ENCODE_H
#define DUMPFS_ENCODE_H

#include "codecs.h"

struct batch {
	const uint8_t *data;
	size_t count, page_size;
	uint8_t *kinds; /* of each page; only those with 0 are stored */
	uint8_t zero_kind; /* what pages of zeros become, or 0: they are stored like others */
	uint32_t *sizes, *flags; /* of each page's stored bytes; 0 where nothing is stored */
	uint8_t *out; /* room for all pages as they are, and for one that the codec made longer */
};

/* Store the pages one behind the other in `out`, compressed where that makes them shorter; the bytes used. */
size_t encode_batch(const struct codec *codec, const struct batch *batch);

#endif
