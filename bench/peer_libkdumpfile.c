/* libkdumpfile's own loop over every stored page of a dump, for bench/bars.
 *
 * usage: peer_libkdumpfile DUMP
 * prints: pages read, CPU seconds of the loop
 */
#include <stdio.h>
#include <fcntl.h>
#include <time.h>
#include <libkdumpfile/kdumpfile.h>

static double cpu_seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	kdump_ctx_t *ctx = kdump_new();
	kdump_num_t page_size, max_pfn, pfn;
	unsigned long pages = 0;
	static char page[1 << 18];
	double start;
	int fd;

	if (argc != 2 || !ctx || (fd = open(argv[1], O_RDONLY)) < 0 ||
	    kdump_set_number_attr(ctx, KDUMP_ATTR_FILE_FD, fd) != KDUMP_OK) {
		fprintf(stderr, "%s: %s\n", argv[1], ctx ? kdump_get_err(ctx) : "no context");
		return 1;
	}
	if (kdump_get_number_attr(ctx, KDUMP_ATTR_PAGE_SIZE, &page_size) != KDUMP_OK ||
	    kdump_get_number_attr(ctx, "max_pfn", &max_pfn) != KDUMP_OK) {
		fprintf(stderr, "%s: %s\n", argv[1], kdump_get_err(ctx));
		return 1;
	}
	start = cpu_seconds();
	for (pfn = 0; pfn < max_pfn; ++pfn) {
		size_t size = page_size;

		if (kdump_read(ctx, KDUMP_MACHPHYSADDR, pfn * page_size, page, &size) == KDUMP_OK)
			++pages;
	}
	printf("%lu %.6f\n", pages, cpu_seconds() - start);
	return 0;
}
