/*
 * Five workloads written by hand, to see what the compiled loop of `mmreplay measure` costs.
 *
 * A shared object: benchmarks/harness_cost.py has threads of the harness begin with one of these
 * functions in place of the compiled loop's.  All else is the harness's: the process, its
 * mappings, its threads and the CPUs they are on, where the counters lie, the signals to begin
 * and to stop.
 *
 * HEAD_..., ROW_..., COUNT_... and SHOT_... (words of the shared tables, loop_tables.py) are
 * given by the compiler's command line.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define PAGE 4096UL
#define MIB (1UL << 20)

enum { WAIT, WARM, MEASURE, STOP };

/* A thread: its row of the shared tables, the header, and what it has seen there. */
struct worker {
	int64_t *row;
	_Atomic int64_t *head;
	int64_t phase;
};

static void shoot(struct worker *w, int at)
{
	struct timespec t;

	for (int k = 0; k < COUNT_WORDS; k++)
		w->row[at + k] = w->row[ROW_COUNTS + k];
	getrusage(RUSAGE_THREAD, (struct rusage *)(w->row + at + SHOT_USAGE));
	clock_gettime(CLOCK_MONOTONIC, &t);
	w->row[at + SHOT_NS] = t.tv_sec * 1000000000L + t.tv_nsec;
}

/* Whether to go on. */
static inline int look(struct worker *w)
{
	int64_t new = atomic_load_explicit(&w->head[HEAD_PHASE], memory_order_acquire);

	if (__builtin_expect(new == w->phase, 1))
		return 1;
	if (w->phase < MEASURE && new >= MEASURE)
		shoot(w, ROW_BEGIN);
	if (new == STOP)
		shoot(w, ROW_END);
	w->phase = new;
	return new != STOP;
}

static inline void count(struct worker *w)
{
	((volatile int64_t *)w->row)[ROW_COUNTS + COUNT_OPS]++;
}

static struct worker begin(int64_t row)
{
	struct worker w = {(int64_t *)row, (void *)((int64_t *)row)[ROW_HEADER], WAIT};

	if (w.row[ROW_PINNED])
		sched_setaffinity(0, 128, (cpu_set_t *)(w.row + ROW_MASK));
	atomic_fetch_add(&w.head[HEAD_ARRIVED], 1);
	while (atomic_load(&w.head[HEAD_PHASE]) == WAIT)
		sched_yield();
	look(&w);
	atomic_fetch_add(&w.head[HEAD_LOOPING], 1);
	return w;
}

static inline char *map(size_t bytes)
{
	return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* page_fault1: map 128 MiB, write to each page, unmap. */
static inline int64_t fault(int64_t row, int populate)
{
	struct worker w = begin(row);

	for (;;) {
		char *at = map(128 * MIB);

		for (size_t k = 0; k < 128 * MIB; k += PAGE) {
			if (populate)
				madvise(at + k, PAGE, MADV_POPULATE_WRITE);
			else
				*(volatile char *)(at + k) = 0;
			count(&w);
			if (!look(&w))
				return 0;
		}
		munmap(at, 128 * MIB);
	}
}

int64_t page_fault1(int64_t row)
{
	return fault(row, 0);
}

int64_t page_fault1_populated(int64_t row)
{
	return fault(row, 1);
}

/* mmap1: map 128 MiB and unmap it. */
int64_t mmap1(int64_t row)
{
	struct worker w = begin(row);

	do {
		munmap(map(128 * MIB), 128 * MIB);
		count(&w);
	} while (look(&w));
	return 0;
}

/* malloc1: map 128 MiB and a page, write into the first page, unmap. */
int64_t malloc1(int64_t row)
{
	struct worker w = begin(row);

	do {
		char *at = map(128 * MIB + PAGE);

		*(volatile char *)at = 0;
		munmap(at, 128 * MIB + PAGE);
		count(&w);
	} while (look(&w));
	return 0;
}

/* tlb_flush2: write to a page, drop it, read it again. */
int64_t tlb_flush2(int64_t row)
{
	struct worker w = begin(row);

	for (;;) {
		char *at = map(MIB);

		for (size_t k = 0; k < MIB; k += PAGE) {
			*(volatile char *)(at + k) = 0;
			madvise(at + k, PAGE, MADV_DONTNEED);
			count(&w);
			(void)*(volatile char *)(at + k);
			if (!look(&w))
				return 0;
		}
		munmap(at, MIB);
	}
}

/* brk1: the break a page up and down again, from where the harness has the heap begin. */
int64_t brk1(int64_t row)
{
	struct worker w = begin(row);
	char *bottom = *(char **)w.head[HEAD_LIVE];

	do {
		brk(bottom + PAGE);
		count(&w);
		brk(bottom);
		count(&w);
	} while (look(&w));
	return 0;
}
