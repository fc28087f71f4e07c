/* See codecs.h.
 *
 * The libraries are those that the system has, by the names of their stable ABIs; their prototypes are written down
 * here, so that nothing but a C compiler is needed to build. State is the process's, made when it is first needed: pages
 * are decoded by one thread at a time and encoded by one at a time.
 */
#include "codecs.h"

#include <dlfcn.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* -- zlib: libdeflate, twice as fast as zlib at a page ------------------------------------------------------------- */

static struct {
	void *(*alloc_decompressor)(void);
	int (*decompress)(void *, const void *, size_t, void *, size_t, size_t *);
	void *(*alloc_compressor)(int);
	size_t (*compress)(void *, const void *, size_t, void *, size_t);
	void *decompressor, *compressor;
} deflate;

static int zlib_decode(const void *in, size_t size, void *out, size_t page_size)
{
	size_t got = 0;

	if (!deflate.decompressor && !(deflate.decompressor = deflate.alloc_decompressor()))
		return -1;
	if (deflate.decompress(deflate.decompressor, in, size, out, page_size, &got))
		return -1;
	return got == page_size ? 0 : -1;
}

static size_t zlib_encode(const void *in, size_t page_size, void *out, size_t room)
{
	if (!deflate.compressor && !(deflate.compressor = deflate.alloc_compressor(1)))
		return 0;
	return deflate.compress(deflate.compressor, in, page_size, out, room);
}

static size_t zlib_bound(size_t page_size)
{
	return page_size + page_size / 8 + 64; /* beyond 5 bytes for each stored block of 64 KiB, header and checksum */
}

/* -- lzo: liblzo2's LZO1X-1 -------------------------------------------------------------------------------------- */

static struct {
	int (*decompress)(const void *, size_t, void *, size_t *, void *);
	int (*compress)(const void *, size_t, void *, size_t *, void *);
	void *work;
} lzo;

#define LZO1X_1_MEM_COMPRESS (16384 * sizeof(void *))

static int lzo_decode(const void *in, size_t size, void *out, size_t page_size)
{
	size_t got = page_size;

	return lzo.decompress(in, size, out, &got, NULL) || got != page_size ? -1 : 0;
}

static size_t lzo_bound(size_t page_size)
{
	return page_size + page_size / 16 + 67;
}

static size_t lzo_encode(const void *in, size_t page_size, void *out, size_t room)
{
	size_t got = 0;

	if (room < lzo_bound(page_size) || (!lzo.work && !(lzo.work = malloc(LZO1X_1_MEM_COMPRESS))))
		return 0;
	return lzo.compress(in, page_size, out, &got, lzo.work) ? 0 : got;
}

/* -- snappy ------------------------------------------------------------------------------------------------------ */

static struct {
	int (*length)(const void *, size_t, size_t *);
	int (*decompress)(const void *, size_t, void *, size_t *);
	int (*compress)(const void *, size_t, void *, size_t *);
} snappy;

static int snappy_decode(const void *in, size_t size, void *out, size_t page_size)
{
	size_t got = 0;

	if (snappy.length(in, size, &got) || got != page_size)
		return -1;
	return snappy.decompress(in, size, out, &got) || got != page_size ? -1 : 0;
}

static size_t snappy_bound(size_t page_size)
{
	return 32 + page_size + page_size / 6;
}

static size_t snappy_encode(const void *in, size_t page_size, void *out, size_t room)
{
	return snappy.compress(in, page_size, out, &room) ? 0 : room;
}

/* -- zstd -------------------------------------------------------------------------------------------------------- */

static struct {
	void *(*create_dctx)(void);
	size_t (*decompress)(void *, void *, size_t, const void *, size_t);
	void *(*create_cctx)(void);
	size_t (*compress)(void *, void *, size_t, const void *, size_t, int);
	unsigned (*is_error)(size_t);
	size_t (*frame_size)(const void *, size_t);
	void *dctx, *cctx;
} zstd;

static int zstd_decode(const void *in, size_t size, void *out, size_t page_size)
{
	if (!zstd.dctx && !(zstd.dctx = zstd.create_dctx()))
		return -1;
	if (zstd.frame_size(in, size) != size) /* several frames would be decoded one behind the other */
		return -1;
	return zstd.decompress(zstd.dctx, out, page_size, in, size) == page_size ? 0 : -1; /* errors are huge numbers */
}

static size_t zstd_encode(const void *in, size_t page_size, void *out, size_t room)
{
	size_t got;

	if (!zstd.cctx && !(zstd.cctx = zstd.create_cctx()))
		return 0;
	got = zstd.compress(zstd.cctx, out, room, in, page_size, 1);
	return zstd.is_error(got) ? 0 : got;
}

static size_t zstd_bound(size_t page_size)
{
	return page_size + page_size / 256 + 512; /* beyond ZSTD_COMPRESSBOUND of anything below 128 KiB */
}

/* -- finding them ------------------------------------------------------------------------------------------------ */

struct symbol {
	const char *name;
	void *to; /* the function pointer that it fills */
};

/* The first of the libraries that is there and has all symbols; 0, or -1. */
static int load(const char *const *names, const struct symbol *symbols, size_t count)
{
	for (; *names; ++names) {
		void *library = dlopen(*names, RTLD_NOW | RTLD_LOCAL);
		size_t i;

		for (i = 0; library && i < count; ++i) {
			void *found = dlsym(library, symbols[i].name);

			if (!found)
				break;
			*(void **)symbols[i].to = found;
		}
		if (library && i == count)
			return 0;
		if (library)
			dlclose(library);
	}
	return -1;
}

static int load_deflate(void)
{
	static const char *const names[] = { "libdeflate.so.0", NULL };
	const struct symbol symbols[] = {
		{ "libdeflate_alloc_decompressor", &deflate.alloc_decompressor },
		{ "libdeflate_zlib_decompress", &deflate.decompress },
		{ "libdeflate_alloc_compressor", &deflate.alloc_compressor },
		{ "libdeflate_zlib_compress", &deflate.compress },
	};

	return load(names, symbols, COUNT(symbols));
}

static int load_lzo(void)
{
	static const char *const names[] = { "liblzo2.so.2", NULL };
	const struct symbol symbols[] = {
		{ "lzo1x_decompress_safe", &lzo.decompress },
		{ "lzo1x_1_compress", &lzo.compress },
	};

	return load(names, symbols, COUNT(symbols));
}

static int load_snappy(void)
{
	static const char *const names[] = { "libsnappy.so.1", NULL };
	const struct symbol symbols[] = {
		{ "snappy_uncompressed_length", &snappy.length },
		{ "snappy_uncompress", &snappy.decompress },
		{ "snappy_compress", &snappy.compress },
	};

	return load(names, symbols, COUNT(symbols));
}

static int load_zstd(void)
{
	static const char *const names[] = { "libzstd.so.1", NULL };
	const struct symbol symbols[] = {
		{ "ZSTD_createDCtx", &zstd.create_dctx }, { "ZSTD_decompressDCtx", &zstd.decompress },
		{ "ZSTD_createCCtx", &zstd.create_cctx }, { "ZSTD_compressCCtx", &zstd.compress },
		{ "ZSTD_isError", &zstd.is_error },       { "ZSTD_findFrameCompressedSize", &zstd.frame_size },
	};

	return load(names, symbols, COUNT(symbols));
}

static const struct entry {
	struct codec codec;
	int (*load)(void);
} entries[] = {
	{ { FLAG_ZLIB, zlib_decode, zlib_encode, zlib_bound }, load_deflate },
	{ { FLAG_LZO, lzo_decode, lzo_encode, lzo_bound }, load_lzo },
	{ { FLAG_SNAPPY, snappy_decode, snappy_encode, snappy_bound }, load_snappy },
	{ { FLAG_ZSTD, zstd_decode, zstd_encode, zstd_bound }, load_zstd },
};

const struct codec *codec_find(uint32_t flag)
{
	static enum { UNKNOWN, LOADED, MISSING } states[COUNT(entries)];
	size_t i;

	for (i = 0; i < COUNT(entries); ++i) {
		if (entries[i].codec.flag != flag)
			continue;
		if (states[i] == UNKNOWN)
			states[i] = entries[i].load() ? MISSING : LOADED;
		return states[i] == LOADED ? &entries[i].codec : NULL;
	}
	return NULL;
}
