/* Readers of one file at once, for bench/bars and bench/run.
 *
 * usage: readers FILE LIST SIZE READERS direct|buffered
 * LIST is an array of 64-bit offsets in the machine's byte order. Each reader, a thread with its own descriptor, takes
 * its share of the list, all shares of adjoining entries and of one length, and reads SIZE bytes at each offset.
 * prints: bytes read, wall seconds from the common start to the last reader's end, and of all reads the median, the
 * 99th percentile and the longest in microseconds
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define ALIGNMENT 4096 /* what O_DIRECT asks of a buffer */

static size_t size;
static pthread_barrier_t start;

struct reader {
	pthread_t thread;
	const uint64_t *list;
	float *times;
	size_t count;
	unsigned long long bytes;
	double begun, ended;
	int fd;
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void *run(void *argument)
{
	struct reader *me = argument;
	double before;
	char *buffer;
	ssize_t got;
	size_t i;

	if (posix_memalign((void **)&buffer, ALIGNMENT, size))
		exit(1);
	memset(buffer, 1, size);
	pthread_barrier_wait(&start);
	me->begun = me->ended = now();
	for (i = 0; i < me->count; ++i) {
		before = me->ended;
		got = pread(me->fd, buffer, size, me->list[i]);
		if (got <= 0) {
			fprintf(stderr, "read of %zu bytes at %#llx: ", size, (unsigned long long)me->list[i]);
			perror("");
			exit(1);
		}
		me->bytes += got;
		me->ended = now();
		me->times[i] = me->ended - before;
	}
	return NULL;
}

static int ascending(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	unsigned long long bytes = 0;
	double begun = 0, ended = 0;
	struct reader *readers;
	struct stat st;
	size_t count, number, i;
	uint64_t *list;
	float *times;
	int fd;

	if (argc != 6 || !(size = strtoul(argv[3], NULL, 10)) || !(number = strtoul(argv[4], NULL, 10))) {
		fprintf(stderr, "usage: readers FILE LIST SIZE READERS direct|buffered\n");
		return 2;
	}
	fd = open(argv[2], O_RDONLY);
	if (fd < 0 || fstat(fd, &st) || (count = st.st_size / 8) < number) {
		perror(argv[2]);
		return 1;
	}
	list = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	times = calloc(count, sizeof *times);
	readers = calloc(number, sizeof *readers);
	if (list == MAP_FAILED || !times || !readers || pthread_barrier_init(&start, NULL, number))
		return 1;
	for (i = 0; i < number; ++i) {
		size_t first = count * i / number;

		readers[i].list = list + first;
		readers[i].times = times + first;
		readers[i].count = count * (i + 1) / number - first;
		readers[i].fd = open(argv[1], O_RDONLY | (strcmp(argv[5], "direct") ? 0 : O_DIRECT));
		if (readers[i].fd < 0) {
			perror(argv[1]);
			return 1;
		}
		if (pthread_create(&readers[i].thread, NULL, run, &readers[i]))
			return 1;
	}
	for (i = 0; i < number; ++i) {
		pthread_join(readers[i].thread, NULL);
		bytes += readers[i].bytes;
		if (!i || readers[i].begun < begun)
			begun = readers[i].begun;
		if (readers[i].ended > ended)
			ended = readers[i].ended;
	}
	qsort(times, count, sizeof *times, ascending);
	printf("%llu %.6f %.1f %.1f %.1f\n", bytes, ended - begun, times[count / 2] * 1e6, times[count * 99 / 100] * 1e6,
	       times[count - 1] * 1e6);
	return 0;
}
