/*-------------------------------------------------------------------------
 *
 * fuzz_backend.c
 *	  libFuzzer inside a backend.
 *
 * What needs a catalog, jsonb or ereport() cannot be fuzzed by a program of
 * its own.  So libFuzzer's runtime is linked into the library of a build with
 * FUZZ=1, and an SQL function hands over to it.  The backend is one in
 * single-user mode with a cluster to throw away: it ends with the fuzzer.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "fuzz.h"

/* A repeated part of a field, and how long a field can become by it. */
#define REPEAT_BEGIN	'\002'
#define REPEAT_END		'\003'
#define REPEAT_TIMES	1024
#define REPEAT_MAX_LEN	(256 * 1024)

PG_FUNCTION_INFO_V1(timpush_fuzz);

extern int	LLVMFuzzerRunDriver(int *argc, char ***argv,
								int (*callback) (const uint8_t *data, size_t size));

static const struct
{
	const char *name;
	FuzzTarget	run;
}			targets[] = {
	{"options", fuzz_options},
	{"push", fuzz_push},
	{"redact", fuzz_redact},
	{"response", fuzz_response},
	{"trigger", fuzz_trigger},
};

static FuzzTarget target;
static MemoryContext input_context;
static const char *forbidden;

void
fuzz_finding(const char *format,...)
{
	va_list		args;

	fprintf(stderr, "finding: ");
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	abort();
}

void
fuzz_forbid(const char *secret)
{
	forbidden = secret;
}

/* SQL hands over no text that is invalid in the database's encoding. */
static void
make_valid(char *text, int len)
{
	int			done = 0;

	while ((done += pg_encoding_verifymbstr(GetDatabaseEncoding(), text + done,
											len - done)) < len)
		text[done++] = '?';
}

char *
fuzz_field(FuzzInput *input)
{
	const uint8 *end = memchr(input->data, '\0', input->left);
	size_t		len = end == NULL ? input->left : (size_t) (end - input->data);
	char	   *text = pnstrdup((const char *) input->data, len);

	if (end != NULL)
		len++;
	input->data += len;
	input->left -= len;
	make_valid(text, (int) strlen(text));
	return text;
}

char *
fuzz_long_field(FuzzInput *input)
{
	char	   *field = fuzz_field(input);
	StringInfoData buf;

	initStringInfo(&buf);
	for (const char *p = field; *p != '\0'; p++)
	{
		const char *end = *p == REPEAT_BEGIN ? strchr(p, REPEAT_END) : NULL;

		if (end == NULL)
		{
			appendStringInfoChar(&buf, *p);
			continue;
		}
		for (int i = 0; i < REPEAT_TIMES && buf.len < REPEAT_MAX_LEN; i++)
			appendBinaryStringInfo(&buf, p + 1, (int) (end - p - 1));
		p = end;
	}
	make_valid(buf.data, buf.len);
	return buf.data;
}

static void
check_message(const char *text)
{
	if (text == NULL)
		return;
	if (pg_encoding_verifymbstr(GetDatabaseEncoding(), text, (int) strlen(text)) !=
		(int) strlen(text))
		fuzz_finding("an error that is not valid text: %s", text);
	if (forbidden != NULL && strstr(text, forbidden) != NULL)
		fuzz_finding("an error that tells a secret: %s", text);
}

/* May a user see this error?  One of elog() or of the machine's he may not. */
static void
check_error(const ErrorData *error)
{
	int			category = ERRCODE_TO_CATEGORY(error->sqlerrcode);

	if (category == ERRCODE_TO_CATEGORY(ERRCODE_INTERNAL_ERROR) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_SYSTEM_ERROR) ||
		error->message == NULL || error->message[0] == '\0')
		fuzz_finding("error %s: %s (%s, %s:%d)",
					 unpack_sql_state(error->sqlerrcode), error->message,
					 error->funcname, error->filename, error->lineno);
	check_message(error->message);
	check_message(error->detail);
	check_message(error->hint);
	check_message(error->context);
}

static int
run_input(const uint8_t *data, size_t size)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	FuzzInput	input = {data, size};

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(input_context);
	forbidden = NULL;
	PG_TRY();
	{
		target(&input);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(input_context);
		check_error(CopyErrorData());
		FlushErrorState();
	}
	PG_END_TRY();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(caller);
	CurrentResourceOwner = owner;
	MemoryContextReset(input_context);
	return 0;
}

static FuzzTarget
find_target(const char *name)
{
	for (size_t i = 0; i < lengthof(targets); i++)
	{
		if (strcmp(targets[i].name, name) == 0)
			return targets[i].run;
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("there is no fuzz target \"%s\"", name)));
}

/* libFuzzer leaves by exit(); a backend would then try to leave in order. */
static void
leave(int status, void *arg pg_attribute_unused())
{
	fflush(NULL);
	_exit(status);
}

/* libFuzzer catches only those signals that nobody else does. */
static void
release_signals(void)
{
	static const int signals[] = {SIGALRM, SIGINT, SIGTERM, SIGFPE, SIGUSR1, SIGUSR2};

	for (size_t i = 0; i < lengthof(signals); i++)
		signal(signals[i], SIG_DFL);
}

/*
 * timpush_fuzz(target text, arguments text[])
 *
 * Runs libFuzzer with these arguments, the first one being the name by which
 * it starts itself again.  Does not return.
 */
Datum
timpush_fuzz(PG_FUNCTION_ARGS)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(1);
	Datum	   *elements;
	int			argc;
	char	  **argv;

	target = find_target(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &argc);
	argv = palloc0(sizeof(char *) * (argc + 1));
	for (int i = 0; i < argc; i++)
		argv[i] = TextDatumGetCString(elements[i]);
	input_context = fuzz_context_create(TopMemoryContext);
	on_exit(leave, NULL);
	release_signals();
	/* single-user mode leaves it unset, and then nesting has no limit */
	(void) set_stack_base();
	exit(LLVMFuzzerRunDriver(&argc, &argv, run_input));
}
