/*-------------------------------------------------------------------------
 *
 * push.h
 *	  Checks of a push that both the way in and the preview apply.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_PUSH_H
#define TIMPUSH_PUSH_H

#include "postgres.h"

#include "utils/array.h"
#include "utils/jsonb.h"

#include "compose.h"

/* Most accounts of one push; more would make rows of tens of megabytes. */
#define PUSH_MAX_ACCOUNTS	1000000

/* The API's limit on DataId, in bytes (1047/67553). */
#define PUSH_MAX_DATA_ID	64

/* Bytes of an account, and of all that is not an account, far above need. */
#define PUSH_MAX_ACCOUNT	512
#define PUSH_MAX_CONTENT	65536

/* A key has to fit into an index. */
#define PUSH_MAX_DEDUP_KEY	1024

/*
 * The fields of a push as SQL has them.  "from_name" and "to_name" are what
 * the user calls the two fields: arguments or columns.
 */
typedef struct PushFields
{
	const char *from_name;
	const char *to_name;
	text	   *from;
	ArrayType  *to;
	text	   *title;
	text	   *descr;
	text	   *data_id;
	text	   *dedup_key;
	Jsonb	   *extra;
	int			priority;
} PushFields;

/*
 * Raises null_value_not_allowed or invalid_parameter_value, naming the field,
 * for anything that the API could only refuse; program_limit_exceeded for
 * too many accounts.
 */
extern void push_check(const PushFields *push);

extern Span text_span(text *value);

#endif							/* TIMPUSH_PUSH_H */
