/*-------------------------------------------------------------------------
 *
 * fuzz.h
 *	  What the fuzz targets that run inside a backend share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_FUZZ_H
#define TIMPUSH_FUZZ_H

#include "postgres.h"

/* Fields of an input end with a NUL, which no text has. */
typedef struct FuzzInput
{
	const uint8 *data;
	size_t		left;
} FuzzInput;

/*
 * A target: takes an input apart, calls what is tested and looks at what came
 * of it.  It may raise errors that a user may see; it runs in a
 * subtransaction that is rolled back, and all that it pallocs is freed.
 */
typedef void (*FuzzTarget) (FuzzInput *input);

extern void fuzz_options(FuzzInput *input);
extern void fuzz_push(FuzzInput *input);
extern void fuzz_redact(FuzzInput *input);
extern void fuzz_response(FuzzInput *input);
extern void fuzz_trigger(FuzzInput *input);

/* The next field as a text of the database's encoding, "" at the end. */
extern char *fuzz_field(FuzzInput *input);

/* The same, what stands between the bytes 2 and 3 being there 1024 times. */
extern char *fuzz_long_field(FuzzInput *input);

/* A text that no error may repeat, or NULL; forgotten after each input. */
extern void fuzz_forbid(const char *secret);

/* Something is wrong: tell what, and end with the input being saved. */
extern void fuzz_finding(const char *format,...)
			__attribute__((format(printf, 1, 2), noreturn));

#define fuzz_check(condition) \
	((condition) ? (void) 0 : fuzz_finding("not so: %s", #condition))

/*
 * A memory context every chunk of which is one of malloc's, so that the
 * sanitizers see where it ends and that it is freed.
 */
extern MemoryContext fuzz_context_create(MemoryContext parent);

#endif							/* TIMPUSH_FUZZ_H */
