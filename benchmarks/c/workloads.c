/*
 * Five workloads written by hand, to see what the compiled loop of `mmreplay measure` costs.
 *
 *     workloads NAME THREADS SECONDS WARM_UP      (benchmarks/harness_cost.py builds and runs it)
 *
 * Each thread has a CPU, and counts on a cache line of its own between two readings of its
 * CPU time.  Prints the sum over threads of count by CPU time, per second: what another
 * program takes of the CPU does not matter.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define PAGE 4096UL
#define MIB (1UL << 20)

static atomic_int phase; /* 0 wait, 1 warm up, 2 measure, 3 stop */
static atomic_int arrived;

struct worker {
	pthread_t thread;
	int number, cpu;
	volatile uint64_t count;
	double rate;
} __attribute__((aligned(64)));

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000UL + t.tv_nsec;
}

/* The phase that the thread has seen, and what it had counted when measuring began. */
struct seen {
	int phase;
	uint64_t began_ns, began_count;
};

static int look(struct worker *w, struct seen *s)
{
	int new = atomic_load_explicit(&phase, memory_order_acquire);

	if (new == s->phase)
		return 1;
	if (s->phase < 2 && new >= 2) {
		s->began_ns = now_ns();
		s->began_count = w->count;
	}
	s->phase = new;
	if (new < 3)
		return 1;
	w->rate = (w->count - s->began_count) * 1e9 / (now_ns() - s->began_ns);
	return 0;
}

static void *map(size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	return at;
}

/* page_fault1: map 128 MiB, write to each page, unmap. */
static void page_fault1(struct worker *w, struct seen *s, int populate)
{
	for (;;) {
		char *at = map(128 * MIB);

		for (size_t k = 0; k < 128 * MIB; k += PAGE) {
			if (populate)
				madvise(at + k, PAGE, MADV_POPULATE_WRITE);
			else
				*(volatile char *)(at + k) = 0;
			w->count++;
			if (!look(w, s))
				return;
		}
		munmap(at, 128 * MIB);
	}
}

/* mmap1: map 128 MiB and unmap it. */
static void mmap1(struct worker *w, struct seen *s)
{
	while (look(w, s)) {
		munmap(map(128 * MIB), 128 * MIB);
		w->count++;
	}
}

/* tlb_flush2: write to a page, drop it, read it again. */
static void tlb_flush2(struct worker *w, struct seen *s)
{
	for (;;) {
		char *at = map(MIB);

		for (size_t k = 0; k < MIB; k += PAGE) {
			*(volatile char *)(at + k) = 0;
			madvise(at + k, PAGE, MADV_DONTNEED);
			w->count++;
			(void)*(volatile char *)(at + k);
			if (!look(w, s))
				return;
		}
		munmap(at, MIB);
	}
}

/* malloc1: map 128 MiB and a page, write into the first page, unmap. */
static void malloc1(struct worker *w, struct seen *s)
{
	while (look(w, s)) {
		char *at = map(128 * MIB + PAGE);

		*(volatile char *)at = 0;
		munmap(at, 128 * MIB + PAGE);
		w->count++;
	}
}

/* brk1: the break a page up and down again. */
static char *bottom;

static void brk1(struct worker *w, struct seen *s)
{
	while (look(w, s)) {
		brk(bottom + PAGE);
		w->count++;
		brk(bottom);
		w->count++;
	}
}

static const char *name;

static void *body(void *argument)
{
	struct worker *w = argument;
	struct seen s = {0};
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(w->cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
	atomic_fetch_add(&arrived, 1);
	while (!atomic_load(&phase))
		sched_yield();
	if (!strcmp(name, "page_fault1"))
		page_fault1(w, &s, 0);
	else if (!strcmp(name, "page_fault1/mmap_lock"))
		page_fault1(w, &s, 1);
	else if (!strcmp(name, "mmap1"))
		mmap1(w, &s);
	else if (!strcmp(name, "tlb_flush2"))
		tlb_flush2(w, &s);
	else if (!strcmp(name, "malloc1"))
		malloc1(w, &s);
	else if (!strcmp(name, "brk1"))
		brk1(w, &s);
	else
		exit(2);
	return NULL;
}

static void doze(double seconds)
{
	struct timespec t = {seconds, (seconds - (long)seconds) * 1e9};

	nanosleep(&t, NULL);
}

int main(int argc, char **argv)
{
	int n = argc > 4 ? atoi(argv[2]) : 0;
	struct worker *workers;
	double sum = 0;

	if (n < 1 || argc < 5 + n) {
		fprintf(stderr, "usage: workloads NAME THREADS SECONDS WARM_UP CPU...\n");
		return 2;
	}
	name = argv[1];
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	workers = map(n * sizeof(*workers));
	for (int k = 0; k < n; k++) {
		workers[k].number = k;
		workers[k].cpu = atoi(argv[5 + k]);
		pthread_create(&workers[k].thread, NULL, body, &workers[k]);
	}
	while (atomic_load(&arrived) < n)
		doze(0.002);
	/* The workload's mappings lie below this, and merge with none that is here already. */
	mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* above what malloc has: threads' tables are there already */
	bottom = sbrk(0);
	bottom = (char *)(((uintptr_t)bottom + PAGE - 1) & ~(PAGE - 1));
	atomic_store(&phase, 1);
	doze(atof(argv[4]));
	atomic_store(&phase, 2);
	doze(atof(argv[3]));
	atomic_store(&phase, 3);
	for (int k = 0; k < n; k++) {
		pthread_join(workers[k].thread, NULL);
		sum += workers[k].rate;
	}
	printf("%.1f\n", sum);
	return 0;
}
