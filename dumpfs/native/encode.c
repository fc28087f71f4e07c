/* See encode.h. */
#include "encode.h"

#include <string.h>

/* Whether a page holds only zeros. Most that do not show it in one of two words. */
static int is_zero(const uint8_t *page, size_t size)
{
	uint64_t first, middle;

	memcpy(&first, page, sizeof first);
	memcpy(&middle, page + size / 2, sizeof middle);
	return !first && !middle && !memcmp(page, page + sizeof first, size - sizeof first);
}

/* One page to `out`: its stored size. */
static size_t store(const struct codec *codec, const struct batch *batch, const uint8_t *page, uint8_t *out)
{
	size_t size = codec->encode(page, batch->page_size, out, codec->bound(batch->page_size));

	if (size && size < batch->page_size)
		return size;
	memcpy(out, page, batch->page_size);
	return batch->page_size;
}

size_t encode_batch(const struct codec *codec, const struct batch *batch)
{
	const uint8_t *zero_page = NULL; /* where the first page of zeros was stored */
	size_t used = 0, zero_size = 0, i;

	for (i = 0; i < batch->count; ++i) {
		const uint8_t *page = batch->data + i * batch->page_size;
		int zero = !batch->kinds[i] && is_zero(page, batch->page_size);
		size_t size;

		if (zero)
			batch->kinds[i] = batch->zero_kind;
		batch->sizes[i] = batch->flags[i] = 0;
		if (batch->kinds[i])
			continue;
		if (zero && zero_page) {
			size = zero_size;
			memcpy(batch->out + used, zero_page, size);
		} else {
			size = store(codec, batch, page, batch->out + used);
		}
		if (zero && !zero_page) {
			zero_page = batch->out + used;
			zero_size = size;
		}
		batch->sizes[i] = size;
		batch->flags[i] = size < batch->page_size ? codec->flag : 0;
		used += size;
	}
	return used;
}
