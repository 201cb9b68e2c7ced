/*-------------------------------------------------------------------------
 *
 * palloc.c
 *	  A memory context for the unit tests.
 *
 * Stands in for the palloc of libpgcommon, which only wraps malloc: here all
 * that a test allocated can be freed at once, as a worker resets its context,
 * and every chunk is one of malloc's, so that the sanitizers see its bounds.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe.h"

#include "palloc.h"

typedef struct Chunk
{
	struct Chunk *prev;
	struct Chunk *next;
	size_t		size;
	size_t		pad;			/* keeps what follows aligned */
} Chunk;

static Chunk context = {&context, &context, 0, 0};
static size_t in_use = 0;
static size_t peak = 0;

static void
grow(size_t size)
{
	in_use += size;
	if (in_use > peak)
		peak = in_use;
}

void *
palloc(Size size)
{
	Chunk	   *chunk = malloc(sizeof(Chunk) + size);

	if (chunk == NULL || size > 0x3fffffff)
		abort();				/* the backend would raise an error */
	chunk->size = size;
	chunk->prev = &context;
	chunk->next = context.next;
	context.next->prev = chunk;
	context.next = chunk;
	grow(size);
	return chunk + 1;
}

void
pfree(void *pointer)
{
	Chunk	   *chunk = (Chunk *) pointer - 1;

	in_use -= chunk->size;
	chunk->prev->next = chunk->next;
	chunk->next->prev = chunk->prev;
	free(chunk);
}

void *
palloc0(Size size)
{
	return memset(palloc(size), 0, size);
}

void *
palloc_extended(Size size, int flags)
{
	return (flags & MCXT_ALLOC_ZERO) != 0 ? palloc0(size) : palloc(size);
}

void *
repalloc(void *pointer, Size size)
{
	size_t		old = ((Chunk *) pointer - 1)->size;
	void	   *new = palloc(size);

	memcpy(new, pointer, old < size ? old : size);
	pfree(pointer);
	return new;
}

char *
pstrdup(const char *in)
{
	return strcpy(palloc(strlen(in) + 1), in);
}

/* Free all that palloc gave out since the last time. */
void
context_reset(void)
{
	while (context.next != &context)
		pfree(context.next + 1);
	peak = 0;
}

/* Bytes in use now, and the most that ever were since the last reset. */
size_t
context_in_use(void)
{
	return in_use;
}

size_t
context_peak(void)
{
	return peak;
}
