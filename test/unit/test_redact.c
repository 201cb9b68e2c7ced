/*-------------------------------------------------------------------------
 *
 * test_redact.c
 *	  What is left of a UserSig in a text that repeats it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe.h"

#include <time.h>

#include "redact.h"
#include "tap.h"

/* As one looks, though shorter. */
#define USERSIG	"eAEBowBc*3siVExTLnZlciI6IjIuMCIsIlRMUy5pZGVudGlmaWVyIjoiYWRtaW4-OiJr_"

#define MEGABYTE	(1024 * 1024)

static void
redacts_to(const char *text, const char *expected, const char *name)
{
	char		copy[1024];

	strlcpy(copy, text, sizeof(copy));
	redact_usersig(copy, USERSIG);
	is(copy, expected, name);
}

/* Is all blanked of the UserSig in the spelling that the format gives it? */
static void
blanks_spelling(const char *format, const char *name)
{
	char		text[1024] = "sorry, ";
	char		blank[1024] = "sorry, ";

	for (const char *p = USERSIG; *p != '\0'; p++)
		snprintf(text + strlen(text), sizeof(text) - strlen(text), format, *p);
	memset(blank + strlen(blank), 'x', strlen(text) - strlen(blank));
	strlcat(text, " !", sizeof(text));
	strlcat(blank, " !", sizeof(blank));
	redacts_to(text, blank, name);
}

static void
test_spellings(void)
{
	char		upper[] = USERSIG;
	char		lower[] = USERSIG;

	blanks_spelling("%c", "as it is");
	blanks_spelling("%%%02X", "escaped");
	blanks_spelling("%%%02x", "escaped with small digits");
	blanks_spelling("%%25%02x", "escaped twice");
	blanks_spelling("%%252525%02x", "escaped four times");
	for (size_t i = 0; i < strlen(upper); i++)
	{
		upper[i] = (char) pg_toupper((unsigned char) upper[i]);
		lower[i] = (char) pg_tolower((unsigned char) lower[i]);
	}
	for (int i = 0; i < 2; i++)
	{
		redact_usersig(i == 0 ? upper : lower, USERSIG);
		is_int(strspn(i == 0 ? upper : lower, "x"), strlen(USERSIG),
			   i == 0 ? "in capitals" : "in small letters");
	}
}

/* Every piece of 15 characters is found, and a shorter one need not be. */
static void
test_pieces(void)
{
	char		piece[16] = "";
	char		text[64];
	int			found = 0;

	for (size_t i = 0; i + 15 <= strlen(USERSIG); i++)
	{
		strlcpy(piece, &USERSIG[i], sizeof(piece));
		snprintf(text, sizeof(text), "in %s, escaped", piece);
		redact_usersig(text, USERSIG);
		found += strcmp(text, "in xxxxxxxxxxxxxxx, escaped") == 0;
	}
	is_int(found, (int) strlen(USERSIG) - 14, "every piece of 15 characters");
	redacts_to("see eAEBowB and eAEBowBc", "see eAEBowB and xxxxxxxx",
			   "the beginning alone, if it is long enough");
	redacts_to("a%2" "3siVExTL%2", "a%2" "3siVExTL%2", "no piece at a broken escape");
	redacts_to("%%%25%2XeAEBowBc", "xxxxxxxxxxxxxxxx", "a piece behind broken escapes");
}

static void
test_names(void)
{
	redacts_to("GET /?usersig=abc&random=1", "GET /?usersig=xxx&random=1",
			   "what stands behind the name");
	redacts_to("UserSig%3Dabc.usersig=", "UserSig%xxxxx.usersig=",
			   "the name in another spelling, and without a value");
	redacts_to("UserSig is illegal; usersig: none", "UserSig is illegal; usersig: none",
			   "the name alone");
	redacts_to("batch_6745c0de_1_2a_deadbeef administrator https://localhost:8443/v4",
			   "batch_6745c0de_1_2a_deadbeef administrator https://localhost:8443/v4",
			   "an innocent text");
	redacts_to("", "", "no text");
}

static void
test_degenerate(void)
{
	char		text[] = "usersig=a short one";

	redact_usersig(text, "short");
	is(text, "usersig=x short one", "a UserSig that is too short to be one");
	redact_usersig(text, "");
	is(text, "usersig=x short one", "none at all");
}

static void
test_outcome(void)
{
	char		info[] = "info " USERSIG;
	char		task[] = "task " USERSIG;
	char		first[] = "first " USERSIG;
	char		second[] = "second " USERSIG;
	AccountError errors[2] = {{.info = first}, {.info = second}};
	Outcome		outcome = {.error_info = info,.nerrors = 2,.errors = errors};

	redact_outcome(&outcome, USERSIG);
	outcome.task_id = task;
	ok(strstr(info, "xxx") && strstr(first, "xxx") && strstr(second, "xxx"),
	   "all texts of an outcome");
	redact_outcome(&outcome, USERSIG);
	ok(strstr(task, "xxx") != NULL, "its TaskId too");
}

/* Seconds for a megabyte of the pattern, again and again. */
static double
seconds_for(const char *pattern)
{
	static char text[MEGABYTE + 1];
	clock_t		begin;

	for (size_t i = 0; i < MEGABYTE; i++)
		text[i] = pattern[i % strlen(pattern)];
	begin = clock();
	redact_usersig(text, USERSIG USERSIG USERSIG USERSIG USERSIG);
	return (double) (clock() - begin) / CLOCKS_PER_SEC;
}

/* What would take hours if the time grew with the square of the text. */
static void
test_hostile(void)
{
	static const char *const patterns[] = {
		"a", "%", "%25", "25", "usersig=", "usersig%", "eAEBowB", "%252", "eAEBowB%", "x "
	};

	for (size_t i = 0; i < lengthof(patterns); i++)
	{
		double		seconds = seconds_for(patterns[i]);

		if (!ok(seconds < 10, "a megabyte of \"%s\"", patterns[i]))
			printf("# took %.1f s\n", seconds);
	}
}

int
main(void)
{
	test_spellings();
	test_pieces();
	test_names();
	test_degenerate();
	test_outcome();
	test_hostile();
	return done_testing();
}
