/* The four compressions of pages, by the libraries that are installed: each is found at run time, none is needed. */
#ifndef DUMPFS_CODECS_H
#define DUMPFS_CODECS_H

#include <stddef.h>
#include <stdint.h>

/* Flags of a page descriptor: diskdump's and makedumpfile's DUMP_DH_COMPRESSED_*. */
enum {
	FLAG_PLAIN = 0x0,
	FLAG_ZLIB = 0x1,
	FLAG_LZO = 0x2,
	FLAG_SNAPPY = 0x4,
	FLAG_ZSTD = 0x20,
};

struct codec {
	uint32_t flag;
	/* `size` stored bytes to exactly `page_size` bytes, never more: 0, or -1 when they are not that. */
	int (*decode)(const void *in, size_t size, void *out, size_t page_size);
	/* A page to at most `room` bytes: how many, or 0 when that failed or is too little room. */
	size_t (*encode)(const void *in, size_t page_size, void *out, size_t room);
	/* Bytes that a page may become, for the room that `encode` needs to succeed with any page. */
	size_t (*bound)(size_t page_size);
};

/* The codec of a flag, or NULL: no such codec, or its library is not installed. Loads the library at its first use. */
const struct codec *codec_find(uint32_t flag);

#endif
