/*-------------------------------------------------------------------------
 *
 * redact.c
 *	  Blanking out what a text from the network repeats of a UserSig.
 *
 * The URL of a call holds the UserSig, and who answers may repeat the URL: a
 * proxy in its page, the API in a text.  It may do so in another spelling or
 * in part only.  Whatever is blanked keeps its length.
 *
 * Pure functions: they build without a backend.
 *
 * Crash story: no state.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "redact.h"

/* A text is known to repeat a UserSig by so many characters in a row. */
#define USERSIG_PART	8

static bool
usersig_char(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
		(c >= '0' && c <= '9') || (c != '\0' && strchr("*-_%+/=", c) != NULL);
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The next character of a URL, its escape undone however often it was made. */
static char
next_unescaped(const char **p)
{
	char		c = *(*p)++;
	const char *code = *p;

	if (c != '%')
		return c;
	while (code[0] == '2' && code[1] == '5' &&
		   hex_digit(code[2]) >= 0 && hex_digit(code[3]) >= 0)
		code += 2;
	if (hex_digit(code[0]) < 0 || hex_digit(code[1]) < 0)
		return c;
	*p = code + 2;
	return (char) (hex_digit(code[0]) << 4 | hex_digit(code[1]));
}

/*
 * Do the characters at p repeat a part of the UserSig, in either case?  Of the
 * parts that begin at multiples of their length, any piece of less than twice
 * that length holds one.
 */
static bool
repeats_usersig(const char *p, const char *end, const char *usersig)
{
	char		part[USERSIG_PART];

	for (int i = 0; i < USERSIG_PART; i++)
	{
		if (p >= end)
			return false;
		part[i] = next_unescaped(&p);
	}
	for (; strnlen(usersig, USERSIG_PART) == USERSIG_PART; usersig += USERSIG_PART)
	{
		if (pg_strncasecmp(part, usersig, USERSIG_PART) == 0)
			return true;
	}
	return false;
}

/* Overwrite a run of signature characters; returns its end. */
static char *
blank_run(char *p)
{
	while (usersig_char(*p))
		*p++ = 'x';
	return p;
}

void
redact_usersig(char *text, const char *usersig)
{
	static const char name[] = "usersig";
	char	   *end;

	for (char *p = text; *p != '\0'; p++)
	{
		if (pg_strncasecmp(p, name, sizeof(name) - 1) == 0 &&
			(p[sizeof(name) - 1] == '=' || p[sizeof(name) - 1] == '%'))
			p = blank_run(p + sizeof(name)) - 1;
	}
	/* anywhere else too, even if only a piece of it is there */
	for (char *run = text; *run != '\0'; run = *end != '\0' ? end + 1 : end)
	{
		for (end = run; usersig_char(*end);)
			end++;
		for (const char *p = run; p < end; p++)
		{
			if (repeats_usersig(p, end, usersig))
			{
				blank_run(run);
				break;
			}
		}
	}
}

void
redact_outcome(Outcome *outcome, const char *usersig)
{
	redact_usersig(outcome->error_info, usersig);
	if (outcome->task_id != NULL)
		redact_usersig(outcome->task_id, usersig);
	for (int i = 0; i < outcome->nerrors; i++)
		redact_usersig(outcome->errors[i].info, usersig);
}
