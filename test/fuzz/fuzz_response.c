/*-------------------------------------------------------------------------
 *
 * fuzz_response.c
 *	  Fuzz target: any bytes as the body of any answer.
 *
 * Built twice: as a program of its own, which is faster, and for a backend,
 * where the JSON parser raises errors that a program does not know of.
 *
 *-------------------------------------------------------------------------
 */
#ifdef FRONTEND
#include "postgres_fe.h"
#else
#include "postgres.h"
#endif

#include "mb/pg_wchar.h"

#include "response.h"

#ifdef FRONTEND
#include "palloc.h"

extern int	LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
#else
#include "fuzz.h"
#endif

/* What response.h promises of every string. */
static void
check_text(const char *text, size_t max_len)
{
	size_t		left = strlen(text);

	if (left > max_len)
		abort();
	while (left > 0)
	{
		size_t		len = (size_t) pg_utf_mblen((const unsigned char *) text);

		if (len > left ||
			!pg_utf8_islegal((const unsigned char *) text, (int) len))
			abort();
		text += len;
		left -= len;
	}
}

static void
check_outcome(const Outcome *outcome)
{
	if (outcome->retry_after < -1 || outcome->retry_after > RETRY_AFTER_MAX)
		abort();
	if (outcome->nerrors < 0 || outcome->nerrors > RESPONSE_MAX_ERRORS)
		abort();
	if ((outcome->class == OUTCOME_SENT || outcome->class == OUTCOME_PARTIAL) &&
		(!outcome->has_code || outcome->error_code != 0 ||
		 (outcome->nerrors > 0) != (outcome->class == OUTCOME_PARTIAL)))
		abort();
	check_text(outcome->error_info, RESPONSE_MAX_TEXT);
	if (outcome->task_id != NULL)
		check_text(outcome->task_id, RESPONSE_MAX_TEXT);
	for (int i = 0; i < outcome->nerrors; i++)
	{
		check_text(outcome->errors[i].account, RESPONSE_MAX_TEXT);
		check_text(outcome->errors[i].info, RESPONSE_MAX_TEXT);
	}
}

static void
judge(const uint8_t *data, size_t size)
{
	static const int statuses[] = {200, 429, 502, 503, 404, 302, 0, 500};
	Transfer	transfer = {TRANSFER_ANSWERED, 200, -1, NULL, NULL, 0};
	Outcome		outcome;

	transfer.body = (const char *) data;
	transfer.body_len = size;
	transfer.http_status = statuses[size % lengthof(statuses)];
	transfer.retry_after = (int) size - 1;
	response_outcome(&transfer, &outcome);
	check_outcome(&outcome);
}

#ifdef FRONTEND
int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	judge(data, size);
	context_reset();
	return 0;
}
#else
/* Whatever error this raises would lose an outcome. */
void
fuzz_response(FuzzInput *input)
{
	PG_TRY();
	{
		judge(input->data, input->left);
	}
	PG_CATCH();
	{
		fuzz_finding("an answer raises an error");
	}
	PG_END_TRY();
}
#endif
