/* Nothing but reading, compressing and writing, for bench/bars: the least that `dumpfs write` could take.
 *
 * usage: bare_writer SOURCE OUT FLAG PROCESSES
 * FLAG is the compression's in a page descriptor. So many processes take 4 MiB of SOURCE in turns, compress its 4 KiB
 * pages by the library that dumpfs uses, and write them to OUT one behind the other, past the page cache where the file
 * system can (then two processes for each core are best). No headers, bitmaps or descriptors, no order, no look for zero
 * pages, no interpreter to start.
 * prints: pages and wall seconds
 */
#define _GNU_SOURCE
#include "../dumpfs/native/codecs.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define PIECE (4 << 20)
#define BLOCK 4096

struct shared {
	_Atomic long next, end; /* offset of the next piece, and of the end of what is written */
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static int work(const struct codec *codec, struct shared *shared, int source, int out)
{
	size_t bound = codec->bound(PAGE);
	char *data = malloc(PIECE), *stored = aligned_alloc(BLOCK, (PIECE + bound) / BLOCK * BLOCK + 2 * BLOCK);

	for (;;) {
		ssize_t got = pread(source, data, PIECE, atomic_fetch_add(&shared->next, PIECE));
		size_t used = 0, size;
		ssize_t at;

		if (got < 0)
			return 1;
		if (got < PAGE)
			return 0;
		for (at = 0; at + PAGE <= got; at += PAGE) {
			size = codec->encode(data + at, PAGE, stored + used, bound);
			if (!size || size >= PAGE) {
				memcpy(stored + used, data + at, PAGE);
				size = PAGE;
			}
			used += size;
		}
		used = (used + BLOCK - 1) / BLOCK * BLOCK;
		if (pwrite(out, stored, used, atomic_fetch_add(&shared->end, used)) != (ssize_t)used)
			return 1;
	}
}

int main(int argc, char **argv)
{
	struct shared *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	const struct codec *codec;
	int source, out, status, failed = 0, i;
	struct stat st;
	double start;

	if (argc != 5 || shared == MAP_FAILED) {
		fprintf(stderr, "usage: bare_writer SOURCE OUT FLAG PROCESSES\n");
		return 2;
	}
	codec = codec_find(strtoul(argv[3], NULL, 0));
	source = open(argv[1], O_RDONLY);
	out = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT, 0600);
	if (out < 0)
		out = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (!codec || source < 0 || out < 0 || fstat(source, &st)) {
		fprintf(stderr, "no such library, or a file cannot be opened\n");
		return 1;
	}
	start = now();
	for (i = atoi(argv[4]); i > 0; --i)
		if (!fork())
			_exit(work(codec, shared, source, out));
	while (wait(&status) > 0)
		failed |= status;
	printf("%ld %.6f\n", (long)(st.st_size / PAGE), now() - start);
	return failed != 0;
}
