/* libkdumpfile's own loop over pages of a dump, for bench/bars and bench/run.
 *
 * usage: peer_libkdumpfile DUMP            every page from the first to the last
 *        peer_libkdumpfile DUMP LIST SIZE  SIZE bytes at each physical address that LIST holds, in its order
 * LIST is an array of 64-bit integers in the machine's byte order. A read that fails is not counted.
 * prints: bytes read, CPU seconds and wall seconds of the loop, and of its reads the median and the 99th percentile
 * in microseconds
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <libkdumpfile/kdumpfile.h>

static double seconds(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static int ascending(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;

	return (x > y) - (x < y);
}

static const uint64_t *read_list(const char *path, size_t *count)
{
	struct stat st;
	int fd = open(path, O_RDONLY);
	void *list;

	if (fd < 0 || fstat(fd, &st) || st.st_size < 8)
		return NULL;
	list = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	*count = st.st_size / 8;
	return list == MAP_FAILED ? NULL : list;
}

int main(int argc, char **argv)
{
	kdump_ctx_t *ctx = kdump_new();
	kdump_num_t page_size, max_pfn;
	const uint64_t *list = NULL;
	size_t count, i, size, done = 0;
	unsigned long long bytes = 0;
	double cpu, wall, before, after;
	float *times;
	char *buffer;
	int fd;

	if ((argc != 2 && argc != 4) || !ctx || (fd = open(argv[1], O_RDONLY)) < 0 ||
	    kdump_set_number_attr(ctx, KDUMP_ATTR_FILE_FD, fd) != KDUMP_OK ||
	    kdump_get_number_attr(ctx, KDUMP_ATTR_PAGE_SIZE, &page_size) != KDUMP_OK ||
	    kdump_get_number_attr(ctx, "max_pfn", &max_pfn) != KDUMP_OK) {
		fprintf(stderr, "%s: %s\n", argc > 1 ? argv[1] : "usage", ctx ? kdump_get_err(ctx) : "no context");
		return 1;
	}
	count = max_pfn;
	size = page_size;
	if (argc == 4 && (!(list = read_list(argv[2], &count)) || !(size = strtoul(argv[3], NULL, 10)))) {
		fprintf(stderr, "%s: not a list\n", argv[2]);
		return 1;
	}
	times = calloc(count, sizeof *times);
	buffer = malloc(size);
	if (!times || !buffer)
		return 1;
	cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
	wall = after = seconds(CLOCK_MONOTONIC);
	for (i = 0; i < count; ++i) {
		size_t got = size;

		before = after;
		if (kdump_read(ctx, KDUMP_MACHPHYSADDR, list ? list[i] : i * page_size, buffer, &got) == KDUMP_OK) {
			bytes += got;
			after = seconds(CLOCK_MONOTONIC);
			times[done++] = after - before;
		}
	}
	wall = seconds(CLOCK_MONOTONIC) - wall;
	cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	if (!done) {
		fprintf(stderr, "%s: %s\n", argv[1], kdump_get_err(ctx));
		return 1;
	}
	qsort(times, done, sizeof *times, ascending);
	printf("%llu %.6f %.6f %.1f %.1f\n", bytes, cpu, wall, times[done / 2] * 1e6, times[done * 99 / 100] * 1e6);
	return 0;
}
