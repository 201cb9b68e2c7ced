/*-------------------------------------------------------------------------
 *
 * fuzz_context.c
 *	  A memory context for the fuzzer.
 *
 * The contexts of a server cut their chunks from large blocks, and a write
 * beyond a chunk's end is then one into its neighbour, which nobody sees.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/ilist.h"
#include "nodes/memnodes.h"
#include "utils/memutils.h"

#include "fuzz.h"

typedef struct FuzzContext
{
	MemoryContextData header;
	dlist_head	chunks;
} FuzzContext;

/* PostgreSQL 15 finds a chunk's context just before the chunk. */
typedef struct Chunk
{
	dlist_node	node;
	Size		size;
	MemoryContext context;
} Chunk;

static void *
fuzz_alloc(MemoryContext context, Size size)
{
	FuzzContext *fuzz = (FuzzContext *) context;
	Chunk	   *chunk = malloc(sizeof(Chunk) + size);

	if (chunk == NULL)
		return NULL;
	chunk->size = size;
	chunk->context = context;
	dlist_push_tail(&fuzz->chunks, &chunk->node);
	return chunk + 1;
}

static void
fuzz_free(MemoryContext context pg_attribute_unused(), void *pointer)
{
	Chunk	   *chunk = (Chunk *) pointer - 1;

	dlist_delete(&chunk->node);
	free(chunk);
}

/* Always another place, so that pointers into the old one are found out. */
static void *
fuzz_realloc(MemoryContext context, void *pointer, Size size)
{
	Chunk	   *chunk = (Chunk *) pointer - 1;
	void	   *result = fuzz_alloc(context, size);

	if (result == NULL)
		return NULL;
	memcpy(result, pointer, Min(size, chunk->size));
	fuzz_free(context, pointer);
	return result;
}

static void
fuzz_reset(MemoryContext context)
{
	FuzzContext *fuzz = (FuzzContext *) context;

	while (!dlist_is_empty(&fuzz->chunks))
		free(dlist_container(Chunk, node, dlist_pop_head_node(&fuzz->chunks)));
}

static void
fuzz_delete(MemoryContext context)
{
	fuzz_reset(context);
	free(context);
}

static Size
fuzz_chunk_space(MemoryContext context pg_attribute_unused(), void *pointer)
{
	return sizeof(Chunk) + ((Chunk *) pointer - 1)->size;
}

static bool
fuzz_is_empty(MemoryContext context)
{
	return dlist_is_empty(&((FuzzContext *) context)->chunks);
}

static void
fuzz_stats(MemoryContext context pg_attribute_unused(),
		   MemoryStatsPrintFunc print pg_attribute_unused(),
		   void *passthru pg_attribute_unused(),
		   MemoryContextCounters *totals pg_attribute_unused(),
		   bool print_to_stderr pg_attribute_unused())
{
}

MemoryContext
fuzz_context_create(MemoryContext parent)
{
	static const MemoryContextMethods methods = {
		.alloc = fuzz_alloc,
		.free_p = fuzz_free,
		.realloc = fuzz_realloc,
		.reset = fuzz_reset,
		.delete_context = fuzz_delete,
		.get_chunk_space = fuzz_chunk_space,
		.is_empty = fuzz_is_empty,
		.stats = fuzz_stats
	};
	FuzzContext *fuzz = calloc(1, sizeof(FuzzContext));

	if (fuzz == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	dlist_init(&fuzz->chunks);
	/* there is no tag for contexts of other kinds */
	MemoryContextCreate((MemoryContext) fuzz, T_AllocSetContext, &methods,
						parent, "timpush fuzz");
	return (MemoryContext) fuzz;
}
