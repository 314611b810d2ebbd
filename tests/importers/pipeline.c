/* Threads that wait for each other: a pipeline (the producer fills mappings, the consumer reads
 * and unmaps them) and rounds of three threads with a barrier.
 * pipeline ITEMS PAGES ROUNDS
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static char *slot;
static long items, pages, rounds;

static char *map_filled(long n)
{
	char *p = mmap(NULL, n << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (long i = 0; i < n; i++)
		p[i << 12] = 1;
	return p;
}

static void *produce(void *arg)
{
	for (long i = 0; i < items; i++) {
		char *p = map_filled(pages);

		pthread_mutex_lock(&lock);
		while (slot)
			pthread_cond_wait(&changed, &lock);
		slot = p;
		pthread_cond_signal(&changed);
		pthread_mutex_unlock(&lock);
	}
	return arg;
}

static void *consume(void *arg)
{
	for (long i = 0; i < items; i++) {
		char *p;

		pthread_mutex_lock(&lock);
		while (!slot)
			pthread_cond_wait(&changed, &lock);
		p = slot;
		slot = NULL;
		pthread_cond_signal(&changed);
		pthread_mutex_unlock(&lock);
		munmap(p, pages << 12);
	}
	return arg;
}

static void *phase(void *arg)
{
	for (long i = 0; i < rounds; i++) {
		long n = pages * ((long)arg + 1) / 2;

		munmap(map_filled(n), n << 12);
		pthread_barrier_wait(&barrier);
	}
	return arg;
}

static void start(pthread_t *t, const char *name, void *(*body)(void *), long arg)
{
	pthread_create(t, NULL, body, (void *)arg);
	pthread_setname_np(*t, name);
}

int main(int argc, char **argv)
{
	pthread_t t[5];

	if (argc < 4)
		return 2;
	items = atol(argv[1]);
	pages = atol(argv[2]);
	rounds = atol(argv[3]);
	pthread_barrier_init(&barrier, NULL, 3);
	start(&t[0], "producer", produce, 0);
	start(&t[1], "consumer", consume, 0);
	pthread_join(t[0], NULL);
	pthread_join(t[1], NULL);
	start(&t[2], "phase0", phase, 0);
	start(&t[3], "phase1", phase, 1);
	start(&t[4], "phase2", phase, 2);
	for (int i = 2; i < 5; i++)
		pthread_join(t[i], NULL);
	return 0;
}
