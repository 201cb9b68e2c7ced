/*-------------------------------------------------------------------------
 *
 * fuzz_redact.c
 *	  Fuzz target: what is left of a UserSig that the other side repeats.
 *
 * Input: a field from which the UserSig is made, and the text that comes back
 * over the network.  In it, the bytes 1 to 4 stand for the UserSig: whole, cut
 * off, behind "usersig=", and with its signs escaped as in URLs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "fuzz.h"
#include "request.h"
#include "response.h"

/* As many characters of the UserSig may not be left in one run. */
#define RUN_LEN			16

/* Those with which each UserSig begins, as zlib containers do. */
#define START			"eJw-"

/* Without an x, which is what a UserSig is overwritten with. */
static char *
make_usersig(FuzzInput *input)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	"abcdefghijklmnopqrstuvwyz0123456789*-_";
	char	   *seed = fuzz_field(input);
	StringInfoData usersig;

	initStringInfo(&usersig);
	appendStringInfoString(&usersig, START);
	for (char *p = seed; *p != '\0'; p++)
		appendStringInfoChar(&usersig, letters[(unsigned char) *p % (sizeof(letters) - 1)]);
	/* a real one has hundreds */
	while (usersig.len < 64)
		appendStringInfoChar(&usersig, letters[usersig.len]);
	return usersig.data;
}

static void
append_escaped(StringInfo buf, const char *usersig)
{
	appendStringInfoString(buf, "&UserSig=");
	for (; *usersig != '\0'; usersig++)
	{
		if (strchr("*-_", *usersig) != NULL)
			appendStringInfo(buf, "%%%02X", *usersig);
		else
			appendStringInfoChar(buf, *usersig);
	}
}

static void
append_echo(StringInfo buf, char c, const char *usersig)
{
	switch (c)
	{
		case 1:
			appendStringInfoString(buf, usersig);
			break;
		case 2:
			appendBinaryStringInfo(buf, usersig, (int) strlen(usersig) / 2);
			break;
		case 3:
			appendStringInfo(buf, "usersig=%s", usersig);
			break;
		case 4:
			append_escaped(buf, usersig);
			break;
		default:
			appendStringInfoChar(buf, c);
	}
}

/*
 * No part of the secret that is long enough to be known from other words, those
 * that stood in the text before.
 */
static void
check_redacted(const char *text, const char *usersig, const char *words)
{
	for (size_t i = 0; i + RUN_LEN <= strlen(usersig); i++)
	{
		char		run[RUN_LEN + 1];

		strlcpy(run, usersig + i, sizeof(run));
		if (strstr(text, run) != NULL && strstr(words, run) == NULL)
			fuzz_finding("\"%s\" of UserSig \"%s\" is left in: %s", run, usersig, text);
	}
}

/* Nothing but single characters has become another one. */
static void
check_rest(const char *before, const char *after)
{
	fuzz_check(strlen(before) == strlen(after));
	for (; *before != '\0'; before++, after++)
		fuzz_check(*before == *after || *after == 'x');
}

void
fuzz_redact(FuzzInput *input)
{
	char	   *usersig = make_usersig(input);
	char	   *words = pnstrdup((const char *) input->data, input->left);
	StringInfoData text;
	char	   *copy;
	Transfer	transfer = {TRANSFER_ANSWERED, 502, -1, NULL, NULL, 0};
	Outcome		outcome;

	initStringInfo(&text);
	for (char *p = words; *p != '\0'; p++)
		append_echo(&text, *p, usersig);
	copy = pstrdup(text.data);
	request_redact(copy, usersig);
	check_rest(text.data, copy);
	check_redacted(copy, usersig, words);

	/* as the worker does it */
	transfer.body = text.data;
	transfer.body_len = text.len;
	response_outcome(&transfer, &outcome);
	request_redact_outcome(&outcome, usersig);
	check_redacted(outcome.error_info, usersig, words);
	if (outcome.task_id != NULL)
		check_redacted(outcome.task_id, usersig, words);
	for (int i = 0; i < outcome.nerrors; i++)
		check_redacted(outcome.errors[i].info, usersig, words);
}
