/*-------------------------------------------------------------------------
 *
 * fuzz_redact.c
 *	  Fuzz target: what is left of a UserSig that the other side repeats.
 *
 * Input: a field from which the UserSig is made, and the text that comes back
 * over the network.  In it, the bytes 1 to 8 stand for the UserSig: whole, cut
 * off, behind "usersig=", with its signs escaped as in URLs, all of it escaped
 * and that twice, its middle, and in capitals and small letters.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "fuzz.h"
#include "redact.h"
#include "response.h"

/* As many characters of the UserSig may not be left in one run. */
#define RUN_LEN			15

/* Those with which each UserSig begins, as zlib containers do. */
#define START			"eJw-"

/* Without an x or X, which is what a UserSig is overwritten with. */
static char *
make_usersig(FuzzInput *input)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWYZ"
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
append_escaped_twice(StringInfo buf, const char *usersig)
{
	for (; *usersig != '\0'; usersig++)
		appendStringInfo(buf, "%%25%02x", *usersig);
}

static void
append_in_case(StringInfo buf, const char *usersig, unsigned char (*change) (unsigned char))
{
	for (; *usersig != '\0'; usersig++)
		appendStringInfoChar(buf, (char) change((unsigned char) *usersig));
}

static void
append_echo(StringInfo buf, char c, const char *usersig)
{
	int			len = (int) strlen(usersig);

	switch (c)
	{
		case 1:
			appendStringInfoString(buf, usersig);
			break;
		case 2:
			appendBinaryStringInfo(buf, usersig, len / 2);
			break;
		case 3:
			appendStringInfo(buf, "usersig=%s", usersig);
			break;
		case 4:
			append_escaped(buf, usersig);
			break;
		case 5:
			append_escaped_twice(buf, usersig);
			break;
		case 6:
			appendBinaryStringInfo(buf, usersig + len / 3, len / 3);
			break;
		case 7:
			append_in_case(buf, usersig, pg_toupper);
			break;
		case 8:
			append_in_case(buf, usersig, pg_tolower);
			break;
		default:
			appendStringInfoChar(buf, c);
	}
}

static char *
in_small_letters(const char *text)
{
	StringInfoData small;

	initStringInfo(&small);
	append_in_case(&small, text, pg_tolower);
	return small.data;
}

/* Undo each escape of a URL once; false if there is none. */
static bool
unescape(char *text)
{
	char	   *dst = text;
	bool		found = false;

	for (const char *src = text; *src != '\0'; src++)
	{
		unsigned	code;

		if (src[0] == '%' && isxdigit((unsigned char) src[1]) &&
			isxdigit((unsigned char) src[2]) && sscanf(src + 1, "%2x", &code) == 1 &&
			code != 0)
		{
			*dst++ = (char) code;
			src += 2;
			found = true;
		}
		else
			*dst++ = *src;
	}
	*dst = '\0';
	return found;
}

/* No part of the secret that is long enough to be known, in either case. */
static void
check_redacted(const char *text, const char *usersig)
{
	char	   *small = in_small_letters(text);
	char	   *secret = in_small_letters(usersig);

	do
	{
		for (size_t i = 0; i + RUN_LEN <= strlen(secret); i++)
		{
			char		run[RUN_LEN + 1];

			strlcpy(run, secret + i, sizeof(run));
			if (strstr(small, run) != NULL)
				fuzz_finding("\"%s\" of UserSig \"%s\" is left in: %s", run, usersig, text);
		}
	} while (unescape(small));
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
	char	   *echo = pnstrdup((const char *) input->data, input->left);
	StringInfoData text;
	char	   *copy;
	Transfer	transfer = {TRANSFER_ANSWERED, 502, -1, NULL, NULL, 0};
	Outcome		outcome;

	initStringInfo(&text);
	for (char *p = echo; *p != '\0'; p++)
		append_echo(&text, *p, usersig);
	copy = pstrdup(text.data);
	redact_usersig(copy, usersig);
	check_rest(text.data, copy);
	check_redacted(copy, usersig);

	/* as the worker does it */
	transfer.body = text.data;
	transfer.body_len = text.len;
	response_outcome(&transfer, &outcome);
	redact_outcome(&outcome, usersig);
	check_redacted(outcome.error_info, usersig);
	if (outcome.task_id != NULL)
		check_redacted(outcome.task_id, usersig);
	for (int i = 0; i < outcome.nerrors; i++)
		check_redacted(outcome.errors[i].info, usersig);
}
